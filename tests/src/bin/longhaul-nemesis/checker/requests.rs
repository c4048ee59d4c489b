//! What clients were told, beside what there is.

use std::collections::{HashMap, HashSet};

use domain_model::{OperationId, OperationStatus as Status};

use super::{Found, Lives, Rule};
use crate::history::{Answer, Asked, History};

/// What requests of one mark came to.
#[derive(Default)]
struct Tally {
    created: HashSet<OperationId>,
    unclear: usize,
    exist: Vec<OperationId>,
}

pub(super) fn check(history: &History, lives: &Lives<'_>, found: &mut Found) {
    let mut tallies: HashMap<u64, Tally> = HashMap::new();
    for (op_id, life) in lives {
        let first = life[0];
        if let Some(mark) = first.mark() {
            tallies.entry(mark).or_default().exist.push(*op_id);
        }
    }
    for request in &history.requests {
        let mark = match &request.asked {
            Asked::Create { mark } | Asked::Retry { mark, .. } => *mark,
            Asked::Cancel { op_id } => {
                cancel(*op_id, &request.answer, lives, found);
                continue;
            }
        };
        let tally = tallies.entry(mark).or_default();
        match &request.answer {
            Answer::Done { op_id, created, .. } => {
                let known = lives.get(op_id).and_then(|life| life[0].mark());
                if known != Some(mark) {
                    let what = format!("a client was told of it, and there is {known:?} instead of {mark}");
                    found.add(Rule::Lost, *op_id, what);
                }
                if *created && !tally.created.insert(*op_id) {
                    found.add(Rule::Double, *op_id, "two clients were told that theirs is the new one");
                }
            }
            Answer::Unclear(_) => tally.unclear += 1,
            Answer::Refused(_) => {}
        }
    }
    for (mark, tally) in tallies {
        let most = tally.created.len() + tally.unclear;
        if tally.exist.len() > most {
            let what =
                format!("{} operations of the mark {mark}, at most {most} asked for", tally.exist.len());
            found.add(Rule::Double, tally.exist.first().copied(), what);
        }
    }
}

fn cancel(op_id: OperationId, answer: &Answer, lives: &Lives<'_>, found: &mut Found) {
    let Answer::Done { status, .. } = answer else { return };
    let Some(life) = lives.get(&op_id) else {
        found.add(Rule::Lost, op_id, "a client was told that it is to be canceled");
        return;
    };
    let remembered = life.iter().any(|change| change.cancel_requested || change.status == Status::Canceled);
    if !status.is_terminal() && !remembered {
        found.add(Rule::CancelForgotten, op_id, "a client was told that it is to be canceled");
    }
}

/// How many unclear requests for something new were carried out after all, of how many.
pub(crate) fn unclear_carried_out(history: &History, lives: &Lives<'_>) -> (usize, usize) {
    let mut marks: HashMap<u64, (usize, usize, usize)> = HashMap::new();
    for life in lives.values() {
        if let Some(mark) = life[0].mark() {
            marks.entry(mark).or_default().0 += 1;
        }
    }
    for request in &history.requests {
        let (Asked::Create { mark } | Asked::Retry { mark, .. }) = &request.asked else { continue };
        match &request.answer {
            Answer::Done { created: true, .. } => marks.entry(*mark).or_default().1 += 1,
            Answer::Unclear(_) => marks.entry(*mark).or_default().2 += 1,
            Answer::Done { .. } | Answer::Refused(_) => {}
        }
    }
    let carried_out =
        marks.values().map(|(exist, told, unclear)| exist.saturating_sub(*told).min(*unclear)).sum();
    (carried_out, marks.values().map(|(_, _, unclear)| unclear).sum())
}
