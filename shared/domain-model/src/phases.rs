use serde::{Deserialize, Serialize};

/// A phase of a kind of operation, with its share of the whole. The phases of a kind are fixed, so that
/// one overall bar can be drawn (the "bootlog").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Phase {
    /// Its name, one word of the field: `snapshot`, `upload`.
    pub name: &'static str,
    /// Its share of the operation's time, relative to the other phases' weights.
    pub weight: u32,
}

/// How far a phase has come: either a percentage or a count.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    /// 0–100, where there is no count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<f64>,
    /// How many units are done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// How many units there are, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// What is counted: `bytes`, `files`, `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// The weight of the phase, for clients that do not know the kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
}

impl Progress {
    /// `current` of `total` units.
    pub fn count(current: u64, total: Option<u64>, unit: &str) -> Self {
        Self { current: Some(current), total, unit: Some(unit.to_owned()), ..Self::default() }
    }

    /// The part that is done, 0.0–1.0; `None` while it cannot be told.
    pub fn fraction(&self) -> Option<f64> {
        let fraction = match (self.percent, self.current, self.total) {
            (Some(percent), _, _) => percent / 100.0,
            (None, Some(_), Some(0)) => 1.0,
            (None, Some(current), Some(total)) => current as f64 / total as f64,
            _ => return None,
        };
        fraction.is_finite().then(|| fraction.clamp(0.0, 1.0))
    }
}

/// Overall progress, 0–100 to one decimal: the weights of the phases before `phase`, and the done part of its own.
/// An unknown phase counts as nothing done.
pub fn overall_percent(phases: &[Phase], phase: &str, progress: Option<&Progress>) -> f64 {
    let whole: u32 = phases.iter().map(|phase| phase.weight).sum();
    let Some(at) = phases.iter().position(|candidate| candidate.name == phase) else { return 0.0 };
    let before: u32 = phases[..at].iter().map(|phase| phase.weight).sum();
    let own = progress.and_then(Progress::fraction).unwrap_or(0.0) * f64::from(phases[at].weight);
    if whole == 0 { 0.0 } else { ((f64::from(before) + own) / f64::from(whole) * 1000.0).round() / 10.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overall_bar_is_the_weighted_sum_of_the_phases() {
        let phases = [Phase { name: "snapshot", weight: 1 }, Phase { name: "upload", weight: 9 }];
        assert_eq!(overall_percent(&phases, "snapshot", None), 0.0);
        assert_eq!(overall_percent(&phases, "upload", None), 10.0);
        assert_eq!(overall_percent(&phases, "upload", Some(&Progress::count(1, Some(2), "bytes"))), 55.0);
        assert_eq!(overall_percent(&phases, "upload", Some(&Progress::count(9, Some(2), "bytes"))), 100.0);
        assert_eq!(overall_percent(&phases, "nonsense", None), 0.0);
    }
}
