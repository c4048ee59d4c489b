//! What a claim costs with so many operations ready at the same time: one claim and its finish after the other, over the
//! bus, with nobody else at work.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bus_messages::{ClaimReply, ClaimRequest, FinishReply, FinishRequest, Outcome};

use super::bench_system::{BenchSystem, Who, typed};
use super::latency::{add, milliseconds};
use crate::figures::Figures;

const FEW: u32 = 1_000;
/// Not before plans and pages are warm.
const WARM_UP: usize = 10;

pub(super) async fn claims(
    system: &BenchSystem,
    figures: &mut Figures,
    many: u32,
    claims: u32,
) -> anyhow::Result<()> {
    for (name, ready) in [("few", FEW), ("many", many)] {
        system.start_afresh().await?;
        system.add_operations(ready, -1000, 0).await?;
        let bus = system.connect(Who::Worker).await?;
        let kinds = BTreeMap::from([("test-sleep".parse()?, 1)]);
        let claim =
            ClaimRequest { worker_id: "longhaul-bench".to_owned(), kinds, max: 1, finished: Vec::new() };
        let mut taken = Vec::new();
        for _ in 0..claims as usize + WARM_UP {
            let began = Instant::now();
            let reply: ClaimReply = typed(&bus, "work.v1.hub.claim", &claim).await?;
            let lease = reply.leases.into_iter().next().context("there is an operation to claim")?;
            let finish =
                FinishRequest::new(lease.op.op_id, lease.attempt, lease.lease_id, Outcome::Succeeded);
            let reply: FinishReply = typed(&bus, "work.v1.hub.finish", &finish).await?;
            ensure!(reply.ok, "not recorded: {reply:?}");
            taken.push(milliseconds(began.elapsed()));
        }
        add(figures, &format!("lro.claim_finish.{name}_ready"), &taken[WARM_UP..]);
        system.outbox_is_empty().await?;
    }
    figures.add_ratio(
        "lro.claim_finish.many_to_few",
        "lro.claim_finish.many_ready.p50",
        "lro.claim_finish.few_ready.p50",
    );
    Ok(())
}
