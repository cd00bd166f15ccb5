//! Prevention: `ctwatch advise` on the span that is reported.
//! Why there is no advice is an answer, too.

use std::ops::RangeInclusive;

use crate::advise::recorded::{Question, case};
use crate::advise::report::{Advice, report};
use crate::record::Recording;
use crate::record::anonymize::Anonymizer;

/// As long as `ctwatch advise` measures by default.
const WINDOW_S: f64 = 15.0;

/// The advice, or why there is none.
pub(super) fn of(
    recording: &Recording,
    version: &'static str,
    ticks: RangeInclusive<i64>,
    anonymizer: Option<&mut Anonymizer>,
) -> (Option<Advice>, Option<String>) {
    let question =
        Question { netns: None, window_s: WINDOW_S, ticks, times: 2.0, bare: anonymizer.is_some() };
    match (case(recording, version, &question), anonymizer) {
        (Ok((case, source)), None) => (Some(report(&case, source, None)), None),
        (Ok((case, source)), Some(anonymizer)) => {
            let mut advice = report(&case, source, None);
            advice.name = advice.name.map(|name| anonymizer.netns(&name));
            // They name files of the host, and so does what takes those away again.
            for item in &mut advice.items {
                item.commands.keep.clear();
                item.commands.undo.retain(|line| !line.starts_with("rm -f"));
            }
            (Some(advice), None)
        }
        (Err(_), Some(_)) => (None, Some("the recording lacks what advice needs".to_owned())),
        (Err(error), None) => (None, Some(format!("{error:#}"))),
    }
}
