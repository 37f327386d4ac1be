//! Reads what `cargo test` prints and adds it up.

/// The sum over all test programs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// One pair per test program that held tests: what ran, and the runner's own count line.
    lines: Vec<(String, String)>,
    /// The program that runs and has not said yet how it went.
    running: Option<String>,
}

impl Counts {
    /// Takes one line of output, in order.
    pub(super) fn read(&mut self, line: &str) {
        let text = line.trim();
        if text.starts_with("Running ") || text.starts_with("Doc-tests ") {
            self.end_program();
            self.running = Some(text.to_owned());
        } else if let Some(result) = text.strip_prefix("test result: ") {
            let [passed, failed, ignored] =
                [" passed", " failed", " ignored"].map(|word| number_before(result, word).unwrap_or(0));
            self.passed += passed;
            self.failed += failed;
            self.ignored += ignored;
            let program = self.running.take().unwrap_or_default();
            if passed + failed + ignored > 0 {
                self.lines.push((program, text.to_owned()));
            }
        }
    }

    /// A program that ended without a count line was killed or has aborted: that is one failure.
    fn end_program(&mut self) {
        if let Some(program) = self.running.take() {
            self.failed += 1;
            self.lines.push((program, "ended without a count".to_owned()));
        }
    }

    /// Says that there is no more output.
    pub(super) fn end(&mut self) {
        self.end_program();
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    pub(super) fn lines(&self) -> &[(String, String)] {
        &self.lines
    }

    /// The sum, as one line. A test that says it was skipped has passed for the runner, and is counted as skipped here.
    pub(super) fn sum(&self, skipped: u64) -> String {
        let Self {
            passed,
            failed,
            ignored,
            ..
        } = self;
        let skipped_all = skipped + ignored;
        let skipped_text = if skipped_all > 0 {
            format!(", {skipped_all} skipped")
        } else {
            String::new()
        };
        format!(
            "{} passed, {failed} failed{skipped_text}",
            passed.saturating_sub(skipped)
        )
    }
}

fn number_before(text: &str, word: &str) -> Option<u64> {
    let before = text
        .split(word)
        .next()
        .filter(|before| before.len() < text.len())?;
    before.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str) -> Counts {
        let mut counts = Counts::default();
        output.lines().for_each(|line| counts.read(line));
        counts.end();
        counts
    }

    #[test]
    fn counts_are_added_up() {
        let counts = read(
            "     Running unittests src/lib.rs (target/debug/deps/a-1)\n\
             running 3 tests\n\
             test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\
             Doc-tests a\n\
             test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
             Running tests/b.rs (target/debug/deps/b-1)\n\
             test result: FAILED. 4 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n",
        );
        assert_eq!(counts.sum(0), "6 passed, 1 failed, 1 skipped");
        assert_eq!(counts.sum(2), "4 passed, 1 failed, 3 skipped");
        assert_eq!(counts.lines().len(), 2, "a program without tests is left out");
    }

    #[test]
    fn a_program_that_dies_counts_as_a_failure() {
        let counts = read("Running tests/a.rs (a)\nrunning 1 test\nRunning tests/b.rs (b)\nrunning 1 test\n");
        assert_eq!(counts.sum(0), "0 passed, 2 failed");
    }
}
