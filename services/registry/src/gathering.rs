use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bus_messages::{ApiError, ErrorCode};
use catalog_database::{DatabaseError, DatabaseErrorKind};
use tokio::sync::{Semaphore, mpsc, oneshot};

use crate::errors::from_database;

/// How long what is asked waits for the transaction under way: what has gathered by then costs little more than one.
const PATIENCE: Duration = Duration::from_millis(5);
/// Transactions under way at the same time, where one waits for a lock or a slow disk.
const LOTS: usize = 4;
/// Requests in one transaction.
const MOST_IN_A_LOT: usize = 64;

/// Gathers requests: those that come while the database is busy with others are done in one transaction. A durable commit
/// costs the same for one as for many, and whoever asks alone waits for nobody.
pub(crate) struct Gathering<Q, A> {
    asked: mpsc::UnboundedSender<Asked<Q, A>>,
}

struct Asked<Q, A> {
    question: Q,
    answer: oneshot::Sender<Result<A, ApiError>>,
}

impl<Q: Clone + Send + 'static, A: Send + 'static> Gathering<Q, A> {
    /// `transact` answers many questions, in their order, in one transaction. It ends when this is dropped.
    pub(crate) fn new<T, F>(transact: T) -> Self
    where
        T: Fn(Vec<Q>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<Vec<A>, DatabaseError>> + Send + 'static,
    {
        let (asked, mut waiting) = mpsc::unbounded_channel();
        let (transact, lots) = (Arc::new(transact), Arc::new(Semaphore::new(LOTS)));
        tokio::spawn(async move {
            let mut latest = None;
            while let Some(first) = waiting.recv().await {
                if let Some(latest) = latest.take() {
                    // One that panicked has ended, too.
                    let _ = tokio::time::timeout(PATIENCE, latest).await;
                }
                // Never closed.
                let Ok(place) = Arc::clone(&lots).acquire_owned().await else { return };
                let mut lot = vec![first];
                while lot.len() < MOST_IN_A_LOT
                    && let Ok(another) = waiting.try_recv()
                {
                    lot.push(another);
                }
                let transact = Arc::clone(&transact);
                latest = Some(tokio::spawn(async move {
                    answer(&*transact, lot).await;
                    drop(place);
                }));
            }
        });
        Self { asked }
    }

    pub(crate) async fn ask(&self, question: Q) -> Result<A, ApiError> {
        let (answer, answered) = oneshot::channel();
        // Either fails only where a transaction panicked.
        let _ = self.asked.send(Asked { question, answer });
        let defect = || ApiError::new(ErrorCode::Internal, "a defect here; it is in the registry's log");
        answered.await.unwrap_or_else(|_| Err(defect()))
    }
}

async fn answer<Q: Clone, A, F>(transact: impl Fn(Vec<Q>) -> F, lot: Vec<Asked<Q, A>>)
where
    F: Future<Output = Result<Vec<A>, DatabaseError>>,
{
    let questions: Vec<Q> = lot.iter().map(|asked| asked.question.clone()).collect();
    match transact(questions).await {
        Ok(answers) => {
            for (asked, answer) in lot.into_iter().zip(answers) {
                // Who has stopped waiting asks again.
                let _ = asked.answer.send(Ok(answer));
            }
        }
        // The database refused all for the sake of one, and has done none of it: each by itself then.
        Err(error) if lot.len() > 1 && error.kind() != DatabaseErrorKind::Unavailable => {
            for Asked { question, answer } in lot {
                let answers = transact(vec![question]).await;
                let result = answers.map(|mut answers| answers.pop()).map_err(from_database);
                if let Some(result) = result.transpose() {
                    let _ = answer.send(result);
                }
            }
        }
        Err(error) => {
            let error = from_database(error);
            for asked in lot {
                let _ = asked.answer.send(Err(error.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn refused() -> DatabaseError {
        DatabaseError::Row { what: "a column", message: "is wrong".to_owned() }
    }

    #[tokio::test]
    async fn those_that_come_together_are_done_together_and_one_that_is_refused_spoils_no_other() {
        let lots = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&lots);
        let gathering = Gathering::new(move |lot: Vec<i32>| {
            seen.lock().unwrap().push(lot.len());
            async move {
                tokio::task::yield_now().await;
                if lot.contains(&13) { Err(refused()) } else { Ok(lot.iter().map(|n| n * 2).collect()) }
            }
        });
        let answers = futures::future::join_all((0..20).map(|n| gathering.ask(n))).await;
        for (n, answer) in (0..20).zip(answers) {
            match n {
                13 => assert_eq!(answer.unwrap_err().code, ErrorCode::Internal),
                _ => assert_eq!(answer.unwrap(), n * 2),
            }
        }
        assert!(lots.lock().unwrap().iter().any(|count| *count > 1), "{lots:?}");
    }
}
