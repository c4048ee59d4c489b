//! What a run came to, for people.

use std::collections::BTreeMap;
use std::io::Write as _;

use domain_model::OperationId;

use crate::checker::{self, Rule, Violation};
use crate::faults::Nemesis;
use crate::history::{Answer, History};
use crate::measures::Measures;
use crate::settings::Settings;

/// Violations that are told of one by one, and those of them with all that is known of their operation.
const TOLD: usize = 40;
const IN_FULL: usize = 5;

/// Prints what happened, and what of it must not be.
pub(crate) fn print(
    settings: &Settings,
    history: &History,
    nemesis: &Nemesis,
    measures: &Measures,
    violations: &[Violation],
) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let lives = checker::lives(history);
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    let waiting = lives.values().filter(|life| life[life.len() - 1].is_far_away()).count();
    let (mut attempts, mut losses, mut failures, mut children, mut deleted) = (0u64, 0u64, 0u64, 0, 0);
    for life in lives.values() {
        let last = life[life.len() - 1];
        *ends.entry(last.status.to_string()).or_default() += 1;
        *kinds.entry(last.kind.as_str()).or_default() += 1;
        attempts += u64::from(last.attempt);
        losses += u64::from(last.lease_losses);
        failures += u64::from(last.failures);
        children += usize::from(last.parent_id.is_some());
        deleted += usize::from(last.what == crate::history::What::Delete);
    }
    let (carried_out, unclear) = checker::unclear_carried_out(history, &lives);
    let refused = history.requests.iter().filter(|request| matches!(request.answer, Answer::Refused(_)));
    let events: usize = history.kept.values().map(|kept| kept.events.len()).sum();
    let (done, in_vain) = nemesis.counts();

    writeln!(out, "seed              {}", settings.seed)?;
    writeln!(
        out,
        "operations        {} ({children} children, {deleted} deleted since, {waiting} for a day far away)",
        lives.len()
    )?;
    writeln!(out, "kinds             {}", counted(&kinds))?;
    writeln!(out, "ends              {}", counted(&ends))?;
    writeln!(out, "attempts          {attempts}: {failures} failed, {losses} lost their lease")?;
    writeln!(
        out,
        "requests          {}: {} refused, {unclear} unclear, of which {carried_out} were carried out",
        history.requests.len(),
        refused.count()
    )?;
    writeln!(out, "changes of rows   {}", history.changes.len())?;
    writeln!(out, "events kept       {events}")?;
    writeln!(out, "watched           {}", history.watched.len())?;
    writeln!(out, "faults            {}; in vain {in_vain}", counted(&done))?;
    for (kind, (everywhere, at_one_host)) in checker::most_at_once(history) {
        let cap = history.caps.get(kind).copied().unwrap_or_default();
        let of = |most: Option<u32>| most.map_or_else(|| "any".to_owned(), |most| most.to_string());
        writeln!(
            out,
            "at once           {kind}: in all {everywhere} (may be {}), at one host {at_one_host} (may be {})",
            of(cap.in_all),
            of(cap.per_host)
        )?;
    }
    let snapshots = history.backups.iter().filter(|backup| backup.has_snapshot).count();
    let good = history.backups.iter().filter(|backup| backup.is_good()).count();
    writeln!(out, "backups           {}, {good} of them good, {snapshots} snapshots", history.backups.len())?;
    for proof in &history.proofs {
        let check = proof.check.as_ref().map_or_else(|| "none".to_owned(), |ended| ended.status.to_string());
        let restore = proof.restore.as_ref().map_or_else(
            || "none".to_owned(),
            |restored| format!("{}, {} files compared", restored.ended.status, restored.compared),
        );
        writeln!(out, "proof             {}: check {check}; restore {restore}", proof.project)?;
    }
    for (counter, value) in measures.totals() {
        writeln!(out, "{counter} at least {value}")?;
    }
    let mut by_rule: BTreeMap<Rule, usize> = BTreeMap::new();
    for violation in violations {
        *by_rule.entry(violation.rule).or_default() += 1;
    }
    let of = |rules: &[Rule]| rules.iter().filter_map(|rule| by_rule.get(rule)).sum::<usize>();
    writeln!(
        out,
        "lost {}  double {}  holes {}  other violations {}",
        of(&[Rule::Lost, Rule::NotEnded]),
        of(&[Rule::Double, Rule::EndChanged]),
        of(&[Rule::Hole]),
        violations.len() - of(&[Rule::Lost, Rule::NotEnded, Rule::Double, Rule::EndChanged, Rule::Hole])
    )?;
    if violations.is_empty() {
        return Ok(());
    }
    writeln!(out, "VIOLATIONS        {}", counted(&by_rule))?;
    for violation in violations.iter().take(TOLD) {
        let op_id = violation.op_id.map(|op_id| op_id.to_string()).unwrap_or_default();
        writeln!(out, "  {:?} {op_id}: {}", violation.rule, violation.what)?;
    }
    let mut told: Vec<(Rule, OperationId)> = Vec::new();
    for violation in violations {
        // One of each rule first: many of one say little more than one.
        let Some(op_id) = violation.op_id else { continue };
        if told.len() < IN_FULL && !told.iter().any(|(rule, _)| *rule == violation.rule) {
            told.push((violation.rule, op_id));
        }
    }
    writeln!(
        out,
        "wipes of the store: {:?}",
        history.wipes.iter().map(ToString::to_string).collect::<Vec<_>>()
    )?;
    for (rule, op_id) in told {
        writeln!(out, "\n--- {rule:?} {op_id}")?;
        tell(&mut out, history, op_id)?;
    }
    Ok(())
}

/// The whole history of an operation.
fn tell(out: &mut impl std::io::Write, history: &History, op_id: OperationId) -> std::io::Result<()> {
    let name = op_id.to_string();
    for request in &history.requests {
        let text = serde_json::to_string(request)?;
        if text.contains(&name) {
            writeln!(out, "client    {text}")?;
        }
    }
    let parent =
        history.changes.iter().find(|change| change.op_id == op_id).and_then(|change| change.parent_id);
    for change in &history.changes {
        if Some(change.op_id) == parent {
            writeln!(out, "parent    {} {}", change.op_id, checker::brief(change))?;
        }
        if change.op_id == op_id {
            if change.what == crate::history::What::Insert {
                writeln!(out, "input     {} {}", change.kind, change.input)?;
            }
            writeln!(out, "database  {:?} {} {}", change.what, change.at, checker::brief(change))?;
        } else if change.parent_id == Some(op_id) {
            writeln!(out, "child     {} {}", change.op_id, checker::brief(change))?;
        }
    }
    if let Some(kept) = history.kept.get(&op_id) {
        for event in &kept.events {
            writeln!(out, "stream    {}", checker::describe(event))?;
        }
        let state = kept
            .state
            .as_ref()
            .map(|state| format!("{} attempt {} rev {}", state.status, state.attempt, state.rev));
        writeln!(out, "summary   {}", state.as_deref().unwrap_or("none"))?;
    }
    for watched in history.watched.iter().filter(|watched| watched.op_id == op_id) {
        writeln!(out, "watcher   since {}, ended {}", watched.since, watched.ended)?;
        for event in &watched.events {
            writeln!(out, "          {}", checker::describe(event))?;
        }
        writeln!(out, "          {:?}", watched.states)?;
    }
    Ok(())
}

fn counted<K: std::fmt::Debug>(counts: &BTreeMap<K, usize>) -> String {
    let each: Vec<String> = counts.iter().map(|(name, count)| format!("{name:?} {count}")).collect();
    if each.is_empty() { "none".to_owned() } else { each.join(", ").replace('"', "") }
}
