//! The version of a kernel, out of what `uname -r` prints.
//! Distributions add what they like behind the number.

/// "6.12.117-cloud" → (6, 12)
#[must_use]
pub fn release_number(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}
