//! Counting what passed, from the lines that cargo's test programs and the scenario runner print.
//! A line that is not understood may not count as anything.

/// What a stage counted. A stage without tests of its own counts as one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Count {
    /// Tests that ran and held.
    pub passed: u64,
    /// Tests that ran and did not.
    pub failed: u64,
    /// Tests that cannot run here.
    pub skipped: u64,
    /// What the summary adds in words.
    pub note: String,
    /// What each failed test said of itself, for the end of the run: CI often keeps no more than that.
    pub failures: Vec<String>,
    /// The scenarios that ran, also those that failed.
    pub ran: Vec<Ran>,
}

/// A scenario that ran.
#[derive(Clone, Debug, PartialEq)]
pub struct Ran {
    /// Its name.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
}

impl Count {
    /// A stage that is its own only test.
    pub fn one(passed: bool) -> Count {
        Count { passed: passed.into(), failed: (!passed).into(), ..Count::default() }
    }

    /// A stage that failed as a whole has a failure even if none of its tests reported one.
    pub fn and_stage(mut self, success: bool) -> Count {
        if !success && self.failed == 0 {
            self.failed = 1;
        } else if success && self.passed + self.failed + self.skipped == 0 {
            self.passed = 1;
        }
        self
    }

    /// Adds a line like `test result: ok. 3 passed; 0 failed; 1 ignored; …`, or `test NAME ... FAILED`.
    pub fn add_test_result(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
        }
        let Some((_, numbers)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in numbers.split(';') {
            let Some((number, what)) = part.trim().split_once(' ') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }

    /// Adds a line of the scenario runner: `ok NAME (1.0 s) …`, `skipped NAME: why`, `FAILED NAME (1.0 s): why`.
    pub fn add_scenario(&mut self, line: &str) {
        let Some((verdict, what)) = line.split_once(' ') else { return };
        match verdict {
            "ok" => self.passed += 1,
            "FAILED" => {
                self.failed += 1;
                self.failures.push(what.to_owned());
            }
            "skipped" => self.skipped += 1,
            _ => return,
        }
        let time = what.split_once(" (").and_then(|(name, rest)| Some((name, rest.split_once(" s)")?.0)));
        if let Some((name, seconds)) = time
            && let Ok(seconds) = seconds.parse()
        {
            self.ran.push(Ran { name: name.to_owned(), seconds });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_test_programs_are_added_up() {
        let mut count = Count::default();
        count.add_test_result("test result: ok. 3 passed; 0 failed; 1 ignored; finished in 0.02s");
        count.add_test_result("test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured");
        count.add_test_result("test results are fine");
        count.add_test_result("test a::good ... ok");
        count.add_test_result("test a::bad ... FAILED");
        let failures = vec!["a::bad".to_owned()];
        assert_eq!(count, Count { passed: 5, failed: 1, skipped: 1, failures, ..Count::default() });
    }

    #[test]
    fn lines_of_scenarios_are_counted() {
        let mut count = Count::default();
        for line in [
            "kernel 6.12",
            "ok a (1.0 s) x=1 (y)",
            "FAILED b (2.5 s): why",
            "skipped c: why",
            "1 of 3 failed",
        ] {
            count.add_scenario(line);
        }
        let failures = vec!["b (2.5 s): why".to_owned()];
        let ran =
            [("a", 1.0), ("b", 2.5)].map(|(name, seconds)| Ran { name: name.to_owned(), seconds }).into();
        assert_eq!(count, Count { passed: 1, failed: 1, skipped: 1, failures, ran, ..Count::default() });
    }

    #[test]
    fn a_stage_that_fails_without_a_failed_test_still_fails() {
        assert_eq!(Count { passed: 4, ..Count::default() }.and_stage(false).failed, 1);
        assert_eq!(Count::default().and_stage(true).passed, 1);
    }
}
