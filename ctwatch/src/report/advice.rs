//! What would have prevented it: `ctwatch advise` on the span that is reported.
//! That it can't be reckoned is an answer, too.

use std::ops::RangeInclusive;

use crate::advise::recorded::{Question, case};
use crate::advise::report::{Report, report};
use crate::record::Recording;

/// As `ctwatch advise` measures by itself.
const WINDOW_S: f64 = 15.0;

/// The advice, or why there is none.
pub(super) fn of(
    recording: &Recording,
    version: &'static str,
    ticks: RangeInclusive<i64>,
) -> (Option<Report>, Option<String>) {
    let question = Question { netns: None, window_s: WINDOW_S, ticks, times: 2.0 };
    match case(recording, version, &question) {
        Ok((case, source)) => (Some(report(&case, source, None)), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    }
}
