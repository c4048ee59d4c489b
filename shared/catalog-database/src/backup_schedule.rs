//! What hosts say of their projects, what is due to be backed up, and what is not saved.

use bus_messages::{BackupPolicy, CacheUse, EventLevel, Operation, ProjectGeneration};
use domain_model::{
    BackupDecision, BackupId, BackupState, BackupUnderWay, HostId, OperationId, ProjectId, Timestamp,
};
use serde_json::Value;
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::error::During;
use crate::operations::{NewOperation, insert};
use crate::{Database, DatabaseError, OutboxEvent};

/// A host counts as busy where more than this share of its time, in percent, something waits for memory.
const BUSY_MEMORY: f32 = 20.0;
/// The same for input and output.
const BUSY_IO: f32 = 60.0;
/// The dedupe key of what the scheduler asks for: one at a time of a kind and project, however many schedulers and
/// registries there are.
pub const SCHEDULED: &str = "schedule";
/// The same of what is not to wait for what is scheduled.
pub const URGENT: &str = "schedule-urgent";
/// By so many seconds upkeep may come early: its project is looked at once a day, and its time may come a moment after that.
const LOOKS_VARY_S: f64 = 6.0 * 3600.0;
/// Upkeep that did not come about is asked for again a day later.
const UPKEEP_ASKED_AGAIN_S: f64 = 24.0 * 3600.0 - LOOKS_VARY_S;

/// A project that the scheduler looks at.
#[derive(Debug, Clone, PartialEq)]
pub struct DueProject {
    /// What the decision depends on.
    pub state: BackupState,
    /// The host that has its files.
    pub host_id: HostId,
    /// Its own policy over that of its account.
    pub policy: BackupPolicy,
    /// The kinds of upkeep whose time has come; none while it has no backup. What its host is too busy for waits until it is
    /// late by as long as a period.
    pub upkeep: Vec<String>,
    /// How many checks of its repository were done so far.
    pub checks: u32,
    /// Whether the next is to read all data, because a backup was found to be bad.
    pub check_all: bool,
    /// The database's clock.
    pub now: Timestamp,
}

/// Something to be done with every repository now and then.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Upkeep {
    /// The kind of operation.
    pub kind: &'static str,
    /// Seconds from one to the next.
    pub every_s: f64,
}

/// What the scheduler has done.
#[derive(Debug, Default)]
pub struct Scheduled {
    /// How many projects it has looked at.
    pub looked_at: usize,
    /// The operations that were asked for.
    pub created: Vec<Operation>,
    /// Projects whose last backup did not come about, or waits for longer than a turn lasts.
    pub missed: Vec<ProjectId>,
    /// The backups among those that wait which were given a higher priority, or whose events tell of the miss.
    pub urged: Vec<OperationId>,
}

/// A project whose backup, queued, is to go ahead, or is to tell of a miss.
struct Urged {
    project: Uuid,
    /// At least this from now on.
    priority: Option<i32>,
    missed: bool,
    /// Whether the one that was missed has ended, and this is another.
    is_asked_for_again: bool,
}

/// How a project stands.
#[derive(Debug, Clone, PartialEq)]
pub struct BackupStanding {
    /// Whether it may have something that is not in its newest backup.
    pub is_unsaved: bool,
    /// Whether somebody has said that it was edited after its newest backup.
    pub touched: bool,
    /// Whether its repository was found to be damaged after its newest backup.
    pub damaged: bool,
    /// Since when its host has said nothing of its projects, where that is too long for its word to count.
    pub host_silent_since: Option<Timestamp>,
    /// Why its newest backup is known to be bad; `None` where it is not.
    pub newest_is_bad: Option<String>,
    /// The newest backup that was proven to restore and is not known to be bad.
    pub verified: Option<BackupId>,
    /// Since when, in seconds; where the newest backup is bad, since the newest that is not; where nothing is known to be
    /// unsaved and its host is silent, since that was last heard of.
    pub unsaved_s: f64,
    /// Whether it was backed up from the host that has its files now.
    pub backed_up_here: bool,
    /// Its own policy over that of its account.
    pub policy: BackupPolicy,
    /// When the scheduler looks at it next.
    pub due_at: Option<Timestamp>,
}

fn policy_of(own: Option<Value>, of_account: Option<Value>) -> Result<BackupPolicy, DatabaseError> {
    let read = |value: Option<Value>, what: &'static str| match value {
        Some(value) => serde_json::from_value(value).map_err(|error| DatabaseError::row(what, error)),
        None => Ok(BackupPolicy::default()),
    };
    let own: BackupPolicy = read(own, "projects.backup_policy")?;
    Ok(own.over(&read(of_account, "accounts.backup_policy")?))
}

/// Raises the priority of backups that wait, and has their events tell of what was missed. Those that a claim has its
/// hand on are left alone: they wait no longer.
async fn urge(connection: &mut PgConnection, urged: &[Urged]) -> Result<Vec<OperationId>, DatabaseError> {
    if urged.is_empty() {
        return Ok(Vec::new());
    }
    let event = |urged: &Urged| {
        let message = match urged.is_asked_for_again {
            true => "the scheduled backup before this one did not come about",
            false => "this scheduled backup is missed: it has waited for longer than a turn lasts",
        };
        let event = OutboxEvent {
            attempt: 0,
            phase: "queued".to_owned(),
            message: message.to_owned(),
            level: EventLevel::Warn,
            status: None,
            detail: None,
        };
        urged.missed.then(|| event.to_json())
    };
    let ids = sqlx::query_scalar!(
        r#"WITH waiting AS (
            SELECT operation.id, sent.priority, sent.event
            FROM unnest($1::uuid[], $2::integer[], $3::jsonb[]) AS sent (project, priority, event)
                JOIN long_running_operations AS operation ON operation.scope_type = 'project'
                    AND coalesce(operation.scope_id, '00000000-0000-0000-0000-000000000000') = sent.project
                    AND operation.kind = 'project-backup' AND operation.status = 'queued'
                    AND operation.dedupe_key = $4
            WHERE sent.event IS NOT NULL OR operation.priority < sent.priority
            FOR UPDATE OF operation SKIP LOCKED),
         changed AS (
            UPDATE long_running_operations AS operation SET
                priority = greatest(operation.priority, waiting.priority), updated_at = now(), rev = operation.rev + 1
            FROM waiting WHERE operation.id = waiting.id
            RETURNING operation.id, operation.scope_type, operation.scope_id, operation.attempt, waiting.event)
         INSERT INTO outbox (op_id, subject, event)
            SELECT id, operation_subject(scope_type, scope_id, id), event || jsonb_build_object('attempt', attempt)
            FROM changed
         RETURNING op_id"#,
        &urged.iter().map(|urged| urged.project).collect::<Vec<_>>(),
        &urged.iter().map(|urged| urged.priority).collect::<Vec<_>>() as &[Option<i32>],
        &urged.iter().map(event).collect::<Vec<_>>() as &[Option<Value>],
        SCHEDULED,
    )
    .fetch_all(connection)
    .await
    .during("urge backups that wait")?;
    Ok(ids.into_iter().map(OperationId::from).collect())
}

impl Database {
    /// Notes what a host says of its projects; of those of other hosts it has nothing to say. A project that changes
    /// counts as edited now.
    pub async fn note_generations(
        &self,
        host: HostId,
        projects: &[ProjectGeneration],
    ) -> Result<(), DatabaseError> {
        let ids: Vec<Uuid> = projects.iter().map(|project| project.project_id.as_uuid()).collect();
        let generations: Vec<i64> = projects.iter().map(|project| project.generation).collect();
        sqlx::query!(
            "UPDATE projects SET
                last_changed_generation = sent.generation,
                last_edited = CASE WHEN sent.generation IS DISTINCT FROM projects.backup_generation THEN now()
                    ELSE projects.last_edited END,
                unsaved_since = CASE WHEN sent.generation IS DISTINCT FROM projects.backup_generation
                    THEN coalesce(projects.unsaved_since, now()) ELSE projects.unsaved_since END
             FROM unnest($2::uuid[], $3::bigint[]) AS sent (id, generation)
             WHERE projects.id = sent.id AND projects.host_id = $1
                AND projects.last_changed_generation <> sent.generation",
            host.as_uuid(),
            &ids,
            &generations,
        )
        .execute(&self.pool)
        .await
        .during("note what a host says of its projects")
        .map(drop)
    }

    /// Notes how much a host has to do.
    pub async fn note_load(
        &self,
        host: HostId,
        memory_pressure: Option<f32>,
        io_pressure: Option<f32>,
        cache: Option<CacheUse>,
    ) -> Result<(), DatabaseError> {
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        sqlx::query!(
            "UPDATE hosts SET memory_pressure = $2, io_pressure = $3, load_seen = now(), last_seen = now(),
                cache_bytes = coalesce($4, cache_bytes), cache_limit_bytes = coalesce($5, cache_limit_bytes)
             WHERE id = $1",
            host.as_uuid(),
            memory_pressure,
            io_pressure,
            cache.map(|cache| bytes(cache.bytes)),
            cache.map(|cache| bytes(cache.limit_bytes)),
        )
        .execute(&self.pool)
        .await
        .during("note the load of a host")
        .map(drop)
    }

    /// Somebody says that a project was edited. `false` where there is no such project.
    pub async fn touch_project(&self, project: ProjectId) -> Result<bool, DatabaseError> {
        let touched = sqlx::query!(
            "UPDATE projects SET touched_at = now(), last_edited = now(),
                unsaved_since = coalesce(unsaved_since, now()), updated_at = now()
             WHERE id = $1",
            project.as_uuid()
        )
        .execute(&self.pool)
        .await
        .during("touch a project")?;
        Ok(touched.rows_affected() > 0)
    }

    /// How a project stands with its backups.
    pub async fn backup_standing(&self, project: ProjectId) -> Result<Option<BackupStanding>, DatabaseError> {
        let row = sqlx::query!(
            r#"SELECT is_unsaved(project) AS "is_unsaved!",
                coalesce(project.touched_at > project.last_backup_at, false) AS "touched!",
                coalesce(project.damaged_at > project.last_backup_at, false) AS "damaged!",
                CASE WHEN is_silent(host) THEN coalesce(host.load_seen, host.created_at) END AS silent_since,
                newest.bad_reason AS "newest_is_bad?",
                (SELECT proven.backup_id FROM backups AS proven
                    WHERE proven.project_id = project.id AND proven.purpose = 'backup' AND proven.deleting_at IS NULL
                        AND proven.verified_at IS NOT NULL AND proven.bad_since IS NULL
                    ORDER BY proven.created_at DESC LIMIT 1) AS verified,
                extract(epoch FROM now() - CASE
                    WHEN newest.backup_id IS NOT NULL THEN coalesce(
                        (SELECT max(good.created_at) FROM backups AS good
                            WHERE good.project_id = project.id AND good.purpose = 'backup'
                                AND good.deleting_at IS NULL AND good.bad_since IS NULL),
                        project.created_at)
                    WHEN is_silent(host) AND NOT is_unsaved(project)
                        THEN greatest(host.load_seen, project.last_backup_at)
                    ELSE coalesce(project.unsaved_since, project.last_backup_at, project.created_at)
                    END)::float8 AS "unsaved_s!",
                project.backup_host_id IS NOT DISTINCT FROM project.host_id AS "backed_up_here!",
                project.backup_policy, account.backup_policy AS "account_policy?", project.backup_due_at
             FROM projects AS project
                JOIN hosts AS host ON host.id = project.host_id
                LEFT JOIN accounts AS account ON account.id = project.account_id
                LEFT JOIN backups AS newest ON newest.project_id = project.id
                    AND newest.backup_id = project.last_backup_id AND newest.bad_since IS NOT NULL
             WHERE project.id = $1"#,
            project.as_uuid()
        )
        .fetch_optional(&self.pool)
        .await
        .during("read how a project stands")?;
        row.map(|row| {
            Ok(BackupStanding {
                is_unsaved: row.is_unsaved,
                touched: row.touched,
                damaged: row.damaged,
                host_silent_since: row.silent_since.map(Timestamp::from),
                newest_is_bad: row.newest_is_bad,
                verified: row
                    .verified
                    .map(|id| id.parse().map_err(|error| DatabaseError::row("backups.backup_id", error)))
                    .transpose()?,
                unsaved_s: row.unsaved_s,
                backed_up_here: row.backed_up_here,
                policy: policy_of(row.backup_policy, row.account_policy)?,
                due_at: row.backup_due_at.map(Timestamp::from),
            })
        })
        .transpose()
    }

    /// Looks at up to `limit` projects that are due, does what `decide` says of each, and stores when to look again: all
    /// in one transaction, so that several who ask at once do not do it twice.
    pub async fn schedule_backups(
        &self,
        limit: u32,
        upkeep: &[Upkeep],
        decide: impl Fn(&DueProject) -> (BackupDecision, Vec<NewOperation>),
    ) -> Result<Scheduled, DatabaseError> {
        const DURING: &str = "schedule backups";
        let upkeep_kinds: Vec<String> = upkeep.iter().map(|upkeep| upkeep.kind.to_owned()).collect();
        let upkeep_every_s: Vec<f64> = upkeep.iter().map(|upkeep| upkeep.every_s).collect();
        let mut transaction = self.pool.begin().await.during(DURING)?;
        let rows = sqlx::query!(
            r#"SELECT project.id, project.host_id, project.backup_due_at, project.last_backup_at,
                project.unsaved_since, project.backup_scheduled_at IS NOT NULL AS "is_asked_for!",
                project.backup_policy, account.backup_policy AS "account_policy?",
                is_unsaved(project) AND has_been_used(project) AS "changed!",
                (SELECT bool_or(status = 'running') FROM long_running_operations
                    WHERE scope_type = 'project'
                        AND coalesce(scope_id, '00000000-0000-0000-0000-000000000000') = project.id AND kind = 'project-backup'
                        AND status IN ('queued', 'running')) AS backup_is_running,
                load.is_busy AS "host_is_busy!",
                ARRAY(SELECT upkeep.kind
                    FROM unnest($4::text[], $5::float8[]) AS upkeep (kind, every_s)
                        LEFT JOIN project_upkeep AS known ON known.project_id = project.id AND known.kind = upkeep.kind
                        CROSS JOIN LATERAL (SELECT
                            extract(epoch FROM now() - coalesce(known.done_at, project.created_at)) AS since_done_s,
                            coalesce(known.reads_all, false) AS is_urgent) AS due
                    WHERE project.last_backup_at IS NOT NULL
                        AND (due.is_urgent
                            OR since_done_s > CASE WHEN load.is_busy THEN 2 * every_s ELSE every_s END - $7)
                        -- What did not come about is asked for again, daily at most.
                        AND coalesce(known.asked_at < now() - make_interval(secs => least(every_s, $6)), true)) AS "upkeep!",
                coalesce((SELECT times FROM project_upkeep AS known
                    WHERE known.project_id = project.id AND known.kind = 'repo-check'), 0) AS "checks!",
                coalesce((SELECT reads_all FROM project_upkeep AS known
                    WHERE known.project_id = project.id AND known.kind = 'repo-check'), false) AS "check_all!",
                now() AS "now!"
             FROM projects AS project
                JOIN hosts AS host ON host.id = project.host_id
                LEFT JOIN accounts AS account ON account.id = project.account_id
                CROSS JOIN LATERAL (SELECT coalesce((host.memory_pressure > $2 OR host.io_pressure > $3)
                    AND host.load_seen > now() - interval '5 minutes', false) AS is_busy) AS load
             WHERE coalesce(project.backup_due_at, '-infinity') <= now()
             ORDER BY coalesce(project.backup_due_at, '-infinity') LIMIT $1
             FOR UPDATE OF project SKIP LOCKED"#,
            i64::from(limit),
            BUSY_MEMORY,
            BUSY_IO,
            &upkeep_kinds,
            &upkeep_every_s,
            UPKEEP_ASKED_AGAIN_S,
            LOOKS_VARY_S,
        )
        .fetch_all(&mut *transaction)
        .await
        .during(DURING)?;
        let mut scheduled = Scheduled { looked_at: rows.len(), ..Scheduled::default() };
        let (mut ids, mut look_again): (Vec<Uuid>, Vec<OffsetDateTime>) = (Vec::new(), Vec::new());
        let mut wanted: Vec<NewOperation> = Vec::new();
        let mut urged: Vec<Urged> = Vec::new();
        for row in rows {
            let project = DueProject {
                state: BackupState {
                    project: row.id.into(),
                    due_at: row.backup_due_at.map(Timestamp::from),
                    changed: row.changed,
                    changed_since: row.unsaved_since.map(Timestamp::from),
                    last_backup_at: row.last_backup_at.map(Timestamp::from),
                    is_asked_for: row.is_asked_for,
                    under_way: match row.backup_is_running {
                        None => BackupUnderWay::No,
                        Some(false) => BackupUnderWay::Waits,
                        Some(true) => BackupUnderWay::Runs,
                    },
                    host_is_busy: row.host_is_busy,
                },
                host_id: row.host_id.into(),
                policy: policy_of(row.backup_policy, row.account_policy)?,
                upkeep: row.upkeep,
                checks: u32::try_from(row.checks).unwrap_or_default(),
                check_all: row.check_all,
                now: row.now.into(),
            };
            let (decision, new) = decide(&project);
            if decision.missed {
                scheduled.missed.push(project.state.project);
            }
            if decision.missed || decision.raise_to.is_some() {
                let is_asked_for_again = decision.back_up.is_some();
                urged.push(Urged {
                    project: row.id,
                    priority: decision.raise_to,
                    missed: decision.missed,
                    is_asked_for_again,
                });
            }
            wanted.extend(new);
            ids.push(row.id);
            look_again.push(decision.look_again_at.as_date_time());
        }
        if ids.is_empty() {
            return Ok(scheduled);
        }
        let (mut asked_for, mut kinds): (Vec<Uuid>, Vec<String>) = (Vec::new(), Vec::new());
        if !wanted.is_empty() {
            let wanted: Vec<&NewOperation> = wanted.iter().collect();
            for row in insert(&mut transaction, &wanted).await?.into_values() {
                if let Some(project) = row.scope_id {
                    asked_for.push(project);
                    kinds.push(row.kind.clone());
                }
                scheduled.created.push(row.try_into()?);
            }
        }
        scheduled.urged = urge(&mut transaction, &urged).await?;
        sqlx::query!(
            "UPDATE projects SET
                backup_due_at = decided.look_again_at,
                backup_scheduled_at = CASE
                    WHEN EXISTS (SELECT 1 FROM unnest($3::uuid[], $4::text[]) AS asked (id, kind)
                        WHERE asked.id = projects.id AND asked.kind = 'project-backup')
                    THEN now() ELSE projects.backup_scheduled_at END
             FROM unnest($1::uuid[], $2::timestamptz[]) AS decided (id, look_again_at)
             WHERE projects.id = decided.id",
            &ids,
            &look_again,
            &asked_for,
            &kinds,
        )
        .execute(&mut *transaction)
        .await
        .during(DURING)?;
        sqlx::query!(
            "INSERT INTO project_upkeep (project_id, kind, asked_at)
             SELECT id, kind, now() FROM unnest($1::uuid[], $2::text[]) AS asked (id, kind) WHERE kind = ANY ($3)
             ON CONFLICT (project_id, kind) DO UPDATE SET asked_at = excluded.asked_at",
            &asked_for,
            &kinds,
            &upkeep_kinds,
        )
        .execute(&mut *transaction)
        .await
        .during(DURING)?;
        transaction.commit().await.during(DURING)?;
        Ok(scheduled)
    }

    /// How many projects have something that is not saved, and for how many seconds the oldest of it is not.
    pub async fn unsaved_projects(&self) -> Result<(i64, f64), DatabaseError> {
        let row = sqlx::query!(
            r#"SELECT count(*) AS "count!",
                coalesce(extract(epoch FROM now() - min(coalesce(project.unsaved_since, project.last_backup_at))), 0)::float8
                    AS "oldest_s!"
             FROM projects AS project
             WHERE is_unsaved(project) AND has_been_used(project)"#
        )
        .fetch_one(&self.pool)
        .await
        .during("count the projects that are not saved")?;
        Ok((row.count, row.oldest_s))
    }

    /// For how many seconds each kind of upkeep has not been done, at most: of the projects that have a backup.
    pub async fn longest_without_upkeep(
        &self,
        upkeep: &[Upkeep],
    ) -> Result<Vec<(String, f64)>, DatabaseError> {
        let kinds: Vec<String> = upkeep.iter().map(|upkeep| upkeep.kind.to_owned()).collect();
        let rows = sqlx::query!(
            r#"SELECT upkeep.kind AS "kind!",
                coalesce(extract(epoch FROM now() - min(coalesce(known.done_at, project.created_at))), 0)::float8
                    AS "longest_s!"
             FROM unnest($1::text[]) AS upkeep (kind)
                LEFT JOIN projects AS project ON project.last_backup_at IS NOT NULL
                LEFT JOIN project_upkeep AS known ON known.project_id = project.id AND known.kind = upkeep.kind
             GROUP BY upkeep.kind"#,
            &kinds,
        )
        .fetch_all(&self.pool)
        .await
        .during("measure how long upkeep was not done")?;
        Ok(rows.into_iter().map(|row| (row.kind, row.longest_s)).collect())
    }
}
