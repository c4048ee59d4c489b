//! Drawing the progress of an operation: a bar for each phase and one for the whole on a terminal, plain lines elsewhere.

use std::io::IsTerminal as _;

use bus_messages::{EventLevel, Operation, ProgressEvent, kinds};
use domain_model::{OperationKind, Phase, Progress, overall_percent};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output;

/// Bars are drawn in thousandths.
const WHOLE: u64 = 1000;
/// Elsewhere than on a terminal a phase is told of again each time it has come this much further, in percent.
const STEP: f64 = 20.0;

/// The picture of one operation, on standard error.
pub(crate) struct Drawing {
    phases: &'static [Phase],
    attempt: u32,
    bars: Option<Bars>,
    last_line: Option<(String, f64)>,
}

struct Bars {
    all: MultiProgress,
    whole: ProgressBar,
    phases: Vec<ProgressBar>,
}

impl Drawing {
    /// A picture of an operation of this kind in which nothing has happened yet.
    pub(crate) fn new(kind: &OperationKind) -> Self {
        let phases = kinds::find(kind).map_or(&[][..], |definition| definition.phases);
        let bars = std::io::stderr().is_terminal().then(|| Bars::new(kind, phases));
        Self { phases, attempt: 0, bars, last_line: None }
    }

    /// Shows an event.
    pub(crate) fn event(&mut self, event: &ProgressEvent) {
        if event.attempt > self.attempt {
            if self.attempt > 0 {
                self.say(&format!("attempt {}", event.attempt));
            }
            self.attempt = event.attempt;
            self.last_line = None;
            self.bars.iter().for_each(Bars::reset);
        }
        let important = matches!(event.level, Some(EventLevel::Warn | EventLevel::Error));
        let percent = self.overall(event);
        if let Some(bars) = &self.bars {
            if important {
                bars.say(&format!("{}: {}", event.phase, event.message));
            }
            bars.event(self.phases, event, percent);
            return;
        }
        let news = match &self.last_line {
            Some((phase, told)) => *phase != event.phase || percent.is_some_and(|now| now >= told + STEP),
            None => true,
        };
        if news || important {
            let percent = percent.or(self.last_line.as_ref().map(|(_, told)| *told)).unwrap_or(0.0);
            self.last_line = Some((event.phase.clone(), percent));
            eprintln!("{percent:5.1}%  {:10}  {}", event.phase, text_of(event));
        }
    }

    /// Shows a summary: the only source where the ring of events has wrapped or is lost.
    pub(crate) fn state(&mut self, operation: &Operation) {
        if let Some(bars) = &self.bars {
            bars.whole.set_position(thousandths(operation.progress / 100.0).max(bars.whole.position()));
        }
    }

    /// Takes the bars away.
    pub(crate) fn finish(self) {
        if let Some(bars) = self.bars {
            bars.phases.iter().chain([&bars.whole]).for_each(ProgressBar::abandon);
        }
    }

    /// The whole, in percent; `None` for an event outside the phases of the kind.
    fn overall(&self, event: &ProgressEvent) -> Option<f64> {
        if event.phase == ProgressEvent::DONE {
            return Some(100.0);
        }
        let known = self.phases.iter().any(|phase| phase.name == event.phase);
        known.then(|| overall_percent(self.phases, &event.phase, event.progress.as_ref()))
    }

    fn say(&self, text: &str) {
        match &self.bars {
            Some(bars) => bars.say(text),
            None => eprintln!("{text}"),
        }
    }
}

impl Bars {
    fn new(kind: &OperationKind, phases: &[Phase]) -> Self {
        let all = MultiProgress::new();
        let names = phases.iter().map(|phase| phase.name.len()).chain([kind.as_str().len()]);
        let width = names.max().unwrap_or(0);
        let bar = |name: &str, style: &str| {
            let bar = all.add(ProgressBar::new(WHOLE));
            // The template is our own; a bad one would leave the default style.
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(format!("{name:width$}"));
            bar
        };
        let whole = bar(kind.as_str(), "{prefix} [{bar:40}] {percent:>3}%  {elapsed}  {wide_msg}");
        let phases = phases.iter().map(|phase| bar(phase.name, "{prefix} [{bar:40}] {wide_msg}")).collect();
        whole.enable_steady_tick(std::time::Duration::from_millis(250));
        Self { all, whole, phases }
    }

    fn reset(&self) {
        for bar in &self.phases {
            bar.set_position(0);
            bar.set_message("");
        }
        self.whole.set_position(0);
    }

    fn event(&self, phases: &[Phase], event: &ProgressEvent, percent: Option<f64>) {
        let position = phases.iter().position(|phase| phase.name == event.phase);
        let ended_well =
            event.status.is_some_and(|status| status == domain_model::OperationStatus::Succeeded);
        let before = if ended_well { phases.len() } else { position.unwrap_or(0) };
        for bar in self.phases.iter().take(before) {
            bar.set_position(WHOLE);
        }
        if let Some(bar) = position.and_then(|position| self.phases.get(position)) {
            bar.set_message(text_of(event));
            bar.set_position(thousandths(
                event.progress.as_ref().and_then(Progress::fraction).unwrap_or(0.0),
            ));
        } else {
            self.whole.set_message(text_of(event));
        }
        if let Some(percent) = percent.filter(|_| event.status.is_none() || ended_well) {
            self.whole.set_position(thousandths(percent / 100.0));
        }
    }

    fn say(&self, text: &str) {
        // A terminal that is gone is no reason to stop watching.
        let _ = self.all.println(text);
    }
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

fn thousandths(fraction: f64) -> u64 {
    (fraction.clamp(0.0, 1.0) * WHOLE as f64).round() as u64
}
