//! SQLite, off the async threads.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use rusqlite::{Connection, Transaction, TransactionBehavior};

/// A service's own database. Instances of one service may share the file.
#[derive(Clone, Debug)]
pub(crate) struct Database {
    connection: Arc<Mutex<Connection>>,
}

impl Database {
    /// Opens the file, making it and its tables where they are missing.
    pub(crate) async fn open(path: &Path, schema: &'static str) -> anyhow::Result<Self> {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || {
            let mut connection =
                Connection::open(&path).with_context(|| format!("cannot open the database {}", path.display()))?;
            // Before anything else: another instance may be just doing the same.
            connection.busy_timeout(Duration::from_secs(10))?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute_batch(schema)?;
            transaction.commit()?;
            Ok(Self { connection: Arc::new(Mutex::new(connection)) })
        })
        .await?
    }

    /// Runs `work` in one write transaction: kept whole if it returns `Ok`, else not at all.
    pub(crate) async fn transact<T, E>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<rusqlite::Error> + Send + 'static,
    {
        let connection = self.connection.clone();
        let transacted = tokio::task::spawn_blocking(move || {
            // A panic in another transaction rolled that one back: the connection is fine.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        });
        match transacted.await {
            Ok(result) => result,
            Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
        }
    }
}

/// Seconds since 1970, for columns of time.
pub(crate) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}
