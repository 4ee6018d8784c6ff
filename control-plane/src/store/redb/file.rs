//! The open file, which may have to be opened anew: after a failed write redb answers nothing but
//! errors until its database is dropped.

use std::sync::Arc;

use redb::Database;
use tokio::sync::watch;

/// Opens the database of a store.
pub(in crate::store) type Opener = Box<dyn Fn() -> Result<Database, redb::Error> + Send>;

/// The file is being opened again.
#[derive(Debug, thiserror::Error)]
#[error("a write to the store failed, and its file is being opened again")]
pub(super) struct Reopening;

/// The database, while there is one. Who reads holds it only as long as the read takes.
#[derive(Debug)]
pub(super) struct File(watch::Sender<State>);

#[derive(Clone)]
enum State {
    Open(Arc<Database>),
    Reopening,
    Closed,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open(_) => "Open",
            Self::Reopening => "Reopening",
            Self::Closed => "Closed",
        })
    }
}

impl File {
    pub(super) fn new(database: Database) -> Self {
        Self(watch::Sender::new(State::Open(Arc::new(database))))
    }

    /// The database, as soon as it is open; `None` when it will not be any more.
    pub(super) async fn opened(&self) -> Option<Arc<Database>> {
        let mut state = self.0.subscribe();
        let opened = state.wait_for(|state| !matches!(state, State::Reopening)).await;
        match &*opened.ok()? {
            State::Open(database) => Some(Arc::clone(database)),
            State::Reopening | State::Closed => None,
        }
    }

    /// The database, if it is open.
    pub(super) fn now(&self) -> Option<Arc<Database>> {
        match &*self.0.borrow() {
            State::Open(database) => Some(Arc::clone(database)),
            State::Reopening | State::Closed => None,
        }
    }

    /// Drops the database: it can be opened again when the last read has let it go.
    pub(super) fn let_go(&self) {
        self.0.send_replace(State::Reopening);
    }

    /// Here it is again.
    pub(super) fn put(&self, database: Database) {
        self.0.send_replace(State::Open(Arc::new(database)));
    }

    /// It will not be open any more.
    pub(super) fn close(&self) {
        self.0.send_replace(State::Closed);
    }
}
