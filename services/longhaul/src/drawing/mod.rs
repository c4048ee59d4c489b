//! Drawing the progress of an operation on standard error: bars that move on a terminal, plain lines elsewhere.

mod bootlog;

use std::io::IsTerminal as _;

use bus_messages::{EventLevel, Operation, ProgressEvent, kinds};
use domain_model::OperationKind;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use bootlog::{Bootlog, State};

/// Elsewhere than on a terminal a phase is told of again each time the whole has come this much further, in percent.
const STEP: f64 = 20.0;

/// The picture of one operation.
pub(crate) struct Drawing {
    bootlog: Bootlog,
    paper: Paper,
}

enum Paper {
    Terminal(Terminal),
    Lines(Lines),
}

impl Drawing {
    /// A picture of an operation of this kind in which nothing has happened yet.
    pub(crate) fn new(kind: &OperationKind) -> Self {
        let phases = kinds::find(kind).map_or(&[][..], |definition| definition.phases);
        let paper = match std::io::stderr().is_terminal() {
            true => Paper::Terminal(Terminal::new(MultiProgress::new())),
            false => Paper::Lines(Lines::default()),
        };
        Self { bootlog: Bootlog::new(kind.as_str(), phases), paper }
    }

    /// Shows an event.
    pub(crate) fn event(&mut self, event: &ProgressEvent) {
        if matches!(event.level, Some(EventLevel::Warn | EventLevel::Error)) {
            self.say(&format!("{}: {}", event.phase, event.message));
        }
        self.bootlog.event(event);
        self.draw();
    }

    /// Shows a summary: the only source where the ring of events has wrapped or is lost.
    pub(crate) fn state(&mut self, operation: &Operation) {
        self.bootlog.state(operation);
        self.draw();
    }

    /// Leaves the picture as it is.
    pub(crate) fn finish(self) {
        if let Paper::Terminal(terminal) = self.paper {
            terminal.rows.iter().for_each(ProgressBar::abandon);
        }
    }

    fn draw(&mut self) {
        match &mut self.paper {
            Paper::Terminal(terminal) => terminal.draw(&self.bootlog),
            Paper::Lines(lines) => lines.news(&self.bootlog).iter().for_each(|line| eprintln!("{line}")),
        }
    }

    fn say(&self, text: &str) {
        match &self.paper {
            // A terminal that is gone is no reason to stop watching.
            Paper::Terminal(terminal) => drop(terminal.all.println(text)),
            Paper::Lines(_) => eprintln!("{text}"),
        }
    }
}

/// Rows that are written again in their places.
struct Terminal {
    all: MultiProgress,
    rows: Vec<ProgressBar>,
}

impl Terminal {
    fn new(all: MultiProgress) -> Self {
        Self { all, rows: Vec::new() }
    }

    fn draw(&mut self, bootlog: &Bootlog) {
        let lines = (0..bootlog.rows().len()).map(|at| bootlog.line(at));
        for (at, line) in [bootlog.whole()].into_iter().chain(lines).enumerate() {
            if at == self.rows.len() {
                let row = self.all.add(ProgressBar::new(1));
                // The template is our own; a bad one would leave the default style.
                if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
                    row.set_style(style);
                }
                self.rows.push(row);
            }
            if self.rows[at].message() != line {
                self.rows[at].set_message(line);
            }
        }
    }
}

/// What was told in lines, so that only news is.
#[derive(Debug, Default)]
struct Lines {
    told: Vec<State>,
    at_percent: f64,
}

impl Lines {
    /// A line for each phase that has begun, has ended, or has come much further since the last time.
    fn news(&mut self, bootlog: &Bootlog) -> Vec<String> {
        let percent = bootlog.percent();
        let further = percent >= self.at_percent + STEP;
        if further || percent < self.at_percent {
            self.at_percent = percent;
        }
        self.told.resize(bootlog.rows().len(), State::Waiting);
        let mut lines = Vec::new();
        for (at, (row, told)) in bootlog.rows().iter().zip(&mut self.told).enumerate() {
            let is_told = match row.state {
                State::Running => *told == State::Running && !further,
                State::Waiting | State::Skipped => true,
                State::Done | State::Interrupted | State::Ended(_) => *told == row.state,
            };
            *told = row.state;
            if !is_told {
                lines.push(format!("{percent:5.1}%  {}", bootlog.line(at)));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test panics")]

    use domain_model::{OperationStatus, Progress};
    use indicatif::{InMemoryTerm, ProgressDrawTarget};

    use super::*;

    fn event(n: u64, phase: &str, progress: Option<Progress>) -> ProgressEvent {
        ProgressEvent {
            op_id: "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11".parse().unwrap(),
            attempt: 1,
            n,
            ts: format!("2026-11-21T07:38:{n:02}.000Z").parse().unwrap(),
            phase: phase.to_owned(),
            message: String::new(),
            level: None,
            progress,
            detail: None,
            status: (phase == "done").then_some(OperationStatus::Succeeded),
        }
    }

    /// A backup of ten parts.
    fn backup() -> Vec<ProgressEvent> {
        let upload = |part| event(3 + part, "upload", Some(Progress::count(part, Some(10), "parts")));
        let begin = [event(1, "repository", None), event(2, "snapshot", None)];
        begin
            .into_iter()
            .chain((0..=10).map(upload))
            .chain([event(20, "clean-up", None), event(21, "done", None)])
            .collect()
    }

    fn bootlog() -> Bootlog {
        let kind = kinds::named("project-backup");
        Bootlog::new(kind.name, kind.phases)
    }

    #[test]
    fn lines_tell_of_each_phase_and_of_each_fifth_of_the_whole() {
        let (mut bootlog, mut lines, mut told) = (bootlog(), Lines::default(), Vec::new());
        for event in backup() {
            bootlog.event(&event);
            told.extend(lines.news(&bootlog));
        }
        assert_eq!(
            told,
            [
                "  0.0%  repository       2%  [>                                       ]  running",
                "  2.0%  repository       2%  [=                                       ]  done        1.0 s",
                "  2.0%  snapshot         3%  [ >                                      ]  running",
                "  5.0%  snapshot         3%  [ =                                      ]  done        1.0 s",
                "  5.0%  upload          94%  [  >------------------------------------ ]  running     0 parts of 10 parts",
                " 23.8%  upload          94%  [  =======>----------------------------- ]  running     2 parts of 10 parts",
                " 52.0%  upload          94%  [  ==================>------------------ ]  running     5 parts of 10 parts",
                " 80.2%  upload          94%  [  =============================>------- ]  running     8 parts of 10 parts",
                " 99.0%  upload          94%  [  ===================================== ]  done        17.0 s",
                " 99.0%  clean-up         1%  [                                       >]  running",
                "100.0%  clean-up         1%  [                                       =]  done        1.0 s",
            ]
        );
    }

    #[test]
    fn a_terminal_shows_the_whole_and_every_phase_at_once() {
        let screen = InMemoryTerm::new(12, 100);
        let target = ProgressDrawTarget::term_like(Box::new(screen.clone()));
        let mut terminal = Terminal::new(MultiProgress::with_draw_target(target));
        let mut bootlog = bootlog();
        for event in backup().into_iter().take(8) {
            bootlog.event(&event);
            terminal.draw(&bootlog);
        }
        terminal.rows.iter().for_each(ProgressBar::abandon);
        let contents = screen.contents();
        let shown: Vec<&str> = contents.lines().map(str::trim_end).collect();
        assert_eq!(
            shown,
            [
                "project-backup  52%  [====================                    ]  running     7.0 s",
                "repository       2%  [=                                       ]  done        1.0 s",
                "snapshot         3%  [ =                                      ]  done        1.0 s",
                "upload          94%  [  ==================>------------------ ]  running     5 parts of 10 parts",
                "clean-up         1%  [                                       -]  waiting",
            ]
        );
    }
}
