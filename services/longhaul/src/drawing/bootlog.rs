//! The bootlog: a row for each phase of an operation, with its share of the whole, its bar, and what has become of it.
//! Pure text, made of events and summaries alone, so that a terminal, a log file and a test get the same.

use bus_messages::{Operation, ProgressEvent};
use domain_model::{OperationStatus, Phase, Progress, Timestamp, overall_percent};

use crate::output;

/// The width of the whole in characters; a phase has as much of it as its weight is of all weights.
const CELLS: usize = 40;
/// The phase of the event that ends an attempt which is to be followed by another.
const QUEUED: &str = "queued";

/// What has become of a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Running,
    Done,
    /// The operation went on without it, or ended before it.
    Skipped,
    /// Its attempt has ended, and another follows.
    Interrupted,
    /// The operation ended in it, and not well.
    Ended(OperationStatus),
}

/// A phase.
#[derive(Debug)]
pub(super) struct Row {
    name: String,
    /// Of the whole, in percent; unknown where the kind is.
    share: Option<f64>,
    /// Where its bar begins and ends.
    cells: (usize, usize),
    pub(super) state: State,
    done: f64,
    text: String,
    began: Option<Timestamp>,
    took_s: Option<f64>,
}

/// The rows, and one for the whole.
#[derive(Debug)]
pub(super) struct Bootlog {
    kind: String,
    phases: &'static [Phase],
    rows: Vec<Row>,
    current: Option<usize>,
    attempt: u32,
    percent: f64,
    ended: Option<OperationStatus>,
    text: String,
    began: Option<Timestamp>,
    latest: Option<Timestamp>,
}

impl Bootlog {
    /// Nothing has happened yet. Without `phases` (a kind that this program does not know) each has its row
    /// once it is heard of.
    pub(super) fn new(kind: &str, phases: &'static [Phase]) -> Self {
        let all: u32 = phases.iter().map(|phase| phase.weight).sum();
        let row = |(phase, cells): (&Phase, (usize, usize))| {
            Row::new(phase.name, Some(100.0 * f64::from(phase.weight) / f64::from(all.max(1))), cells)
        };
        let rows = phases.iter().zip(places(phases)).map(row).collect();
        Self {
            kind: kind.to_owned(),
            phases,
            rows,
            current: None,
            attempt: 0,
            percent: 0.0,
            ended: None,
            text: String::new(),
            began: None,
            latest: None,
        }
    }

    /// Takes an event in.
    pub(super) fn event(&mut self, event: &ProgressEvent) {
        self.attempt(event.attempt);
        self.began.get_or_insert(event.ts);
        self.latest = self.latest.max(Some(event.ts));
        if event.phase == ProgressEvent::DONE {
            self.text = text_of(event);
            self.end(event.status.unwrap_or(OperationStatus::Succeeded), event.ts);
        } else if event.phase == QUEUED {
            self.text = text_of(event);
            self.interrupt();
        } else if let Some(at) = self.position(&event.phase) {
            self.enter(at, event.ts);
            let row = &mut self.rows[at];
            row.text = text_of(event);
            row.done = event.progress.as_ref().and_then(Progress::fraction).unwrap_or(0.0);
            if !self.phases.is_empty() {
                self.percent = overall_percent(self.phases, &event.phase, event.progress.as_ref());
            }
        }
    }

    /// Takes a summary in: all there is where the ring of events has wrapped or is lost.
    pub(super) fn state(&mut self, operation: &Operation) {
        if operation.attempt < self.attempt {
            return;
        }
        self.attempt(operation.attempt);
        let at =
            operation.phase.as_deref().and_then(|phase| self.rows.iter().position(|row| row.name == phase));
        let is_ahead = at >= self.current && operation.progress >= self.percent;
        self.percent = self.percent.max(operation.progress);
        if let Some(at) = at.filter(|_| is_ahead && operation.status == OperationStatus::Running) {
            self.began = self.began.or(operation.started_at);
            self.enter(at, operation.updated_at);
            let before: f64 = self.rows[..at].iter().filter_map(|row| row.share).sum();
            let row = &mut self.rows[at];
            if let Some(share) = row.share.filter(|share| *share > 0.0) {
                row.done = ((operation.progress - before) / share).clamp(row.done, 1.0);
            }
            if let Some(message) = &operation.message {
                row.text.clone_from(message);
            }
        }
        if operation.status.is_terminal() && self.ended.is_none() {
            self.end(operation.status, operation.updated_at);
        }
    }

    /// How far the whole is, in percent.
    pub(super) fn percent(&self) -> f64 {
        self.percent
    }

    /// The rows, in the order of the phases.
    pub(super) fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// A line for the row of this number.
    pub(super) fn line(&self, at: usize) -> String {
        let row = &self.rows[at];
        let share = row.share.map_or_else(|| "    ".to_owned(), |share| format!("{share:3.0}%"));
        let text = match (row.state, row.took_s) {
            (State::Running | State::Interrupted | State::Ended(_), _) => row.text.clone(),
            (State::Done, Some(seconds)) => format!("{seconds:.1} s"),
            _ => String::new(),
        };
        let (bar, state, width) = (bar(row), row.state.word(), self.width());
        format!("{:width$} {share}  [{bar}]  {state:11} {text}", row.name).trim_end().to_owned()
    }

    /// A line for the whole.
    pub(super) fn whole(&self) -> String {
        let full = cells_of(CELLS, self.percent / 100.0);
        let bar = format!("{}{}", "=".repeat(full), " ".repeat(CELLS - full));
        let state = match (self.ended, self.current) {
            (Some(status), _) => status.to_string(),
            (None, Some(_)) => "running".to_owned(),
            (None, None) => "waiting".to_owned(),
        };
        let attempt = if self.attempt > 1 { format!("attempt {}  ", self.attempt) } else { String::new() };
        let seconds = match (self.began, self.latest) {
            (Some(began), Some(latest)) => format!("{:.1} s  ", latest.seconds_since(began).max(0.0)),
            _ => String::new(),
        };
        let width = self.width();
        let line = format!("{:width$} {:3.0}%  [{bar}]  {state:11} ", self.kind, self.percent.floor());
        format!("{line}{attempt}{seconds}{}", self.text).trim_end().to_owned()
    }

    fn width(&self) -> usize {
        let names = self.rows.iter().map(|row| row.name.len());
        names.chain([self.kind.len()]).max().unwrap_or(0)
    }

    fn position(&mut self, phase: &str) -> Option<usize> {
        let known = self.rows.iter().position(|row| row.name == phase);
        if known.is_none() && self.phases.is_empty() {
            self.rows.push(Row::new(phase, None, (0, CELLS)));
            return Some(self.rows.len() - 1);
        }
        known
    }

    fn attempt(&mut self, attempt: u32) {
        if attempt > self.attempt {
            self.interrupt();
            self.attempt = attempt;
            self.percent = 0.0;
            self.text.clear();
        }
    }

    fn interrupt(&mut self) {
        if let Some(at) = self.current.take() {
            self.rows[at].state = State::Interrupted;
        }
    }

    /// What comes before a phase that runs is over; what comes after it, is still to come, also where an earlier attempt
    /// has done it.
    fn enter(&mut self, at: usize, moment: Timestamp) {
        if self.current == Some(at) {
            return;
        }
        self.current = Some(at);
        let (before, rest) = self.rows.split_at_mut(at);
        for row in before {
            row.over(moment);
        }
        if let Some((row, after)) = rest.split_first_mut() {
            row.state = State::Running;
            (row.began, row.took_s) = (Some(moment), None);
            for row in after {
                (row.state, row.done, row.took_s) = (State::Waiting, 0.0, None);
            }
        }
    }

    fn end(&mut self, status: OperationStatus, moment: Timestamp) {
        self.ended = Some(status);
        self.current = None;
        let well = status == OperationStatus::Succeeded;
        if well {
            self.percent = 100.0;
        }
        for row in &mut self.rows {
            match row.state {
                State::Running | State::Interrupted if !well => row.state = State::Ended(status),
                _ => row.over(moment),
            }
        }
    }
}

impl Row {
    fn new(name: &str, share: Option<f64>, cells: (usize, usize)) -> Self {
        Self {
            name: name.to_owned(),
            share,
            cells,
            state: State::Waiting,
            done: 0.0,
            text: String::new(),
            began: None,
            took_s: None,
        }
    }

    /// The operation is past it.
    fn over(&mut self, moment: Timestamp) {
        self.state = match self.state {
            State::Running => {
                self.took_s = self.began.map(|began| moment.seconds_since(began).max(0.0));
                State::Done
            }
            // A later attempt went on behind it.
            State::Interrupted | State::Done => State::Done,
            State::Waiting | State::Skipped => State::Skipped,
            State::Ended(status) => State::Ended(status),
        };
    }
}

impl State {
    fn word(self) -> String {
        match self {
            Self::Waiting => "waiting".to_owned(),
            Self::Running => "running".to_owned(),
            Self::Done => "done".to_owned(),
            Self::Skipped => "skipped".to_owned(),
            Self::Interrupted => "interrupted".to_owned(),
            Self::Ended(status) => status.to_string(),
        }
    }
}

/// Where the bar of each phase begins and ends: one after the other, as long as their weights, and none without a place.
fn places(phases: &[Phase]) -> Vec<(usize, usize)> {
    let all = f64::from(phases.iter().map(|phase| phase.weight).sum::<u32>().max(1));
    let cells = CELLS.max(phases.len());
    let (mut sum, mut begin) = (0, 0);
    let place = |(at, phase): (usize, &Phase)| {
        sum += phase.weight;
        let end = (cells as f64 * f64::from(sum) / all).round() as usize;
        let end = end.max(begin + 1).min(cells - (phases.len() - 1 - at));
        let place = (begin, end);
        begin = end;
        place
    };
    phases.iter().enumerate().map(place).collect()
}

/// The bar at its place in the whole: `=` is done, `-` is to be done, `>` is being done, `.` is left out.
fn bar(row: &Row) -> String {
    let (begin, end) = row.cells;
    let length = end - begin;
    let own = match row.state {
        State::Done => "=".repeat(length),
        State::Waiting => "-".repeat(length),
        State::Skipped => ".".repeat(length),
        State::Running | State::Interrupted | State::Ended(_) => {
            let full = cells_of(length, row.done);
            let head = if row.state == State::Running { ">" } else { "x" };
            let rest = length - full;
            format!("{}{}{}", "=".repeat(full), head.repeat(rest.min(1)), "-".repeat(rest.saturating_sub(1)))
        }
    };
    format!("{}{own}{}", " ".repeat(begin), " ".repeat(CELLS.saturating_sub(end)))
}

fn cells_of(length: usize, fraction: f64) -> usize {
    (length as f64 * fraction.clamp(0.0, 1.0)).floor() as usize
}

/// The message of an event, or its count where it has none.
fn text_of(event: &ProgressEvent) -> String {
    match &event.progress {
        Some(Progress { current: Some(current), total, unit, .. }) if event.message.is_empty() => {
            let count = |count: u64| match unit.as_deref() {
                Some("bytes") => output::size(count),
                Some(unit) => format!("{count} {unit}"),
                None => count.to_string(),
            };
            total.map_or_else(|| count(*current), |total| format!("{} of {}", count(*current), count(total)))
        }
        _ => event.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test panics")]

    use super::*;

    const PHASES: &[Phase] = &[
        Phase { name: "repository", weight: 2 },
        Phase { name: "download", weight: 90 },
        Phase { name: "verify", weight: 3 },
        Phase { name: "exchange", weight: 5 },
    ];

    fn event(
        attempt: u32,
        second: u32,
        phase: &str,
        message: &str,
        progress: Option<Progress>,
    ) -> ProgressEvent {
        ProgressEvent {
            op_id: "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11".parse().unwrap(),
            attempt,
            n: 1,
            ts: format!("2026-11-21T07:38:{second:02}.500Z").parse().unwrap(),
            phase: phase.to_owned(),
            message: message.to_owned(),
            level: None,
            progress,
            detail: None,
            status: None,
        }
    }

    fn done(second: u32, status: OperationStatus) -> ProgressEvent {
        ProgressEvent { status: Some(status), ..event(1, second, "done", "", None) }
    }

    fn half() -> Option<Progress> {
        Some(Progress { percent: Some(50.0), ..Progress::default() })
    }

    fn picture(bootlog: &Bootlog) -> String {
        let rows = (0..bootlog.rows().len()).map(|at| bootlog.line(at));
        [bootlog.whole()].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn each_phase_has_its_share_its_place_and_its_state() {
        let mut bootlog = Bootlog::new("project-restore", PHASES);
        bootlog.event(&event(1, 1, "repository", "opening the repository", None));
        bootlog.event(&event(1, 2, "download", "303.1 MB of 606.2 MB", half()));
        assert_eq!(
            picture(&bootlog),
            "\
project-restore  47%  [==================                      ]  running     1.0 s
repository        2%  [=                                       ]  done        1.0 s
download         90%  [ ==================>-----------------   ]  running     303.1 MB of 606.2 MB
verify            3%  [                                     -  ]  waiting
exchange          5%  [                                      --]  waiting"
        );
        bootlog.event(&event(1, 4, "exchange", "putting the files in place", None));
        bootlog.event(&done(5, OperationStatus::Succeeded));
        assert_eq!(
            picture(&bootlog),
            "\
project-restore 100%  [========================================]  succeeded   4.0 s
repository        2%  [=                                       ]  done        1.0 s
download         90%  [ ====================================   ]  done        2.0 s
verify            3%  [                                     .  ]  skipped
exchange          5%  [                                      ==]  done        1.0 s"
        );
    }

    #[test]
    fn a_failure_stays_in_the_phase_in_which_it_happened() {
        let mut bootlog = Bootlog::new("project-restore", PHASES);
        bootlog.event(&event(1, 1, "download", "reading", half()));
        bootlog.event(&done(2, OperationStatus::Failed));
        let states: Vec<State> = bootlog.rows().iter().map(|row| row.state).collect();
        let failed = State::Ended(OperationStatus::Failed);
        assert_eq!(states, [State::Skipped, failed, State::Skipped, State::Skipped]);
        assert!(bootlog.line(1).contains("=x---") && bootlog.line(1).ends_with("failed      reading"));
        assert_eq!(bootlog.percent(), 47.0, "what was not done is not drawn as done");
    }

    #[test]
    fn another_attempt_keeps_what_was_done_before_it_and_no_more() {
        let mut bootlog = Bootlog::new("project-restore", PHASES);
        bootlog.event(&event(1, 1, "repository", "", None));
        bootlog.event(&event(1, 2, "download", "", half()));
        bootlog.event(&event(1, 3, "queued", "its worker was stopped", None));
        assert_eq!(bootlog.rows()[1].state, State::Interrupted);
        assert!(bootlog.whole().contains("waiting") && bootlog.whole().ends_with("its worker was stopped"));
        bootlog.event(&event(2, 4, "verify", "", None));
        assert_eq!(bootlog.rows()[1].state, State::Done, "the second attempt went on behind it");
        assert!(bootlog.whole().contains("attempt 2"));
        bootlog.event(&event(3, 5, "repository", "", None));
        let states: Vec<State> = bootlog.rows().iter().map(|row| row.state).collect();
        assert_eq!(states, [State::Running, State::Waiting, State::Waiting, State::Waiting]);
        assert_eq!(bootlog.percent(), 0.0);
    }

    #[test]
    fn a_summary_alone_is_enough() {
        let id = "0199c4a2-7c1e-7d6b-9d0c-6f2b8f0f4a11";
        let at = "2026-11-21T07:38:27.123Z";
        let summary = |status: &str, phase: &str, progress: f64| -> Operation {
            serde_json::from_value(serde_json::json!({
                "op_id": id, "kind": "project-restore", "scope": format!("project-{id}"), "scope_type": "project",
                "scope_id": id, "status": status, "created_by": "operator", "owner": null, "routing": "hub", "input": {},
                "result": null, "error": null, "progress_summary": null, "progress": progress, "phase": phase,
                "message": "half of it", "attempt": 2, "max_attempts": 5, "lease_losses": 0, "priority": 0,
                "not_before": at, "lease_until": null, "heartbeat_at": null, "cancel_requested_at": null,
                "created_at": at, "started_at": at, "finished_at": null, "updated_at": at, "expires_at": at,
                "dedupe_key": null, "exclusive_key": null, "parent_id": null, "waiting_for_children": false,
                "retry_of": null, "rev": 3,
            }))
            .unwrap()
        };
        let mut bootlog = Bootlog::new("project-restore", PHASES);
        bootlog.state(&summary("running", "download", 47.0));
        assert!(bootlog.line(1).ends_with("running     half of it"), "{}", bootlog.line(1));
        assert!(
            bootlog.line(1).contains("[ ==================>-----------------   ]"),
            "{}",
            bootlog.line(1)
        );
        // A later event is nearer to the truth than an earlier summary.
        bootlog.event(&event(2, 30, "verify", "", None));
        bootlog.state(&summary("running", "download", 60.0));
        assert_eq!(bootlog.rows()[2].state, State::Running);
        bootlog.state(&summary("canceled", "verify", 93.0));
        assert_eq!(bootlog.rows()[2].state, State::Ended(OperationStatus::Canceled));
    }

    #[test]
    fn an_unknown_kind_has_rows_for_what_is_heard_of() {
        let mut bootlog = Bootlog::new("word-count", &[]);
        bootlog.event(&event(1, 1, "count", "", Some(Progress::count(1, Some(2), "texts"))));
        bootlog.event(&event(1, 2, "check", "", None));
        bootlog.event(&done(3, OperationStatus::Succeeded));
        assert_eq!(bootlog.rows().len(), 2);
        assert!(bootlog.line(0).starts_with("count      ") && bootlog.line(0).contains("done"));
    }

    #[test]
    fn every_phase_of_every_kind_has_a_place_in_a_bar_that_is_whole() {
        let kinds = bus_messages::kinds::ALL.iter().map(|kind| kind.phases);
        for phases in kinds.chain([PHASES]) {
            let places = places(phases);
            assert_eq!(places.first().unwrap().0, 0);
            assert_eq!(places.last().unwrap().1, CELLS);
            for (one, next) in places.iter().zip(&places[1..]) {
                assert!(one.0 < one.1 && one.1 == next.0, "{places:?}");
            }
        }
    }
}
