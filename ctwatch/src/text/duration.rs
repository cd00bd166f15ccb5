//! Lengths of time in words.
//! As fine as they are short.

/// "30.0 s", "1 min 15 s", "2 h 5 min"
#[must_use]
pub fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole / 60 % 60),
    }
}

/// Seconds in at most five characters.
#[must_use]
pub fn short_duration(seconds: f64) -> String {
    const MINUTE: f64 = 60.0;
    const HOUR: f64 = 60.0 * MINUTE;
    const DAY: f64 = 24.0 * HOUR;
    match seconds {
        ..600.0 => format!("{seconds:.0}s"),
        ..7_200.0 => format!("{:.0}m", seconds / MINUTE),
        ..172_800.0 => format!("{:.0}h", seconds / HOUR),
        _ => format!("{:.0}d", (seconds / DAY).min(9_999.0)),
    }
}

/// How long something took: "21 ms", "1.4 s"
#[must_use]
pub fn took(seconds: f64) -> String {
    if seconds < 0.9995 { format!("{:.0} ms", seconds * 1_000.0) } else { format!("{seconds:.1} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_as_fine_as_it_is_short() {
        assert_eq!(duration(30.04), "30.0 s");
        assert_eq!(duration(75.0), "1 min 15 s");
        assert_eq!(duration(7_500.0), "2 h 5 min");
    }

    #[test]
    fn durations_are_short() {
        let texts = [0.0, 61.0, 599.0, 600.0, 7_200.0, 432_000.0, 4e9].map(short_duration);
        assert_eq!(texts, ["0s", "61s", "599s", "10m", "2h", "5d", "9999d"]);
    }
}
