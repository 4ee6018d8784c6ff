//! Orders and what happened to them. A saga's progress is written here before its next step.

use axum::http::StatusCode;
use rusqlite::{OptionalExtension as _, Row, Transaction};
use serde::{Deserialize, Serialize};

use super::NewOrder;
use crate::{
    database::{Database, now},
    propagate::TraceHeaders,
    service::Refusal,
};

/// Tables.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS orders (
        id TEXT PRIMARY KEY,
        idempotency_key TEXT NOT NULL UNIQUE,
        wanted TEXT NOT NULL,
        trace TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('placed', 'reserved', 'charged', 'confirmed', 'cancelling', 'cancelled')),
        undo INTEGER NOT NULL DEFAULT 0,
        reason TEXT,
        total_cents INTEGER,
        payments_version TEXT
    ) STRICT;
    CREATE INDEX IF NOT EXISTS unfinished ON orders (state) WHERE state NOT IN ('confirmed', 'cancelled');
    CREATE TABLE IF NOT EXISTS events (
        number INTEGER PRIMARY KEY,
        order_id TEXT NOT NULL REFERENCES orders,
        event TEXT NOT NULL,
        reason TEXT,
        at INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS events_of_order ON events (order_id);
";

/// How far an order has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OrderState {
    /// Written down; goods are to be reserved.
    Placed,
    /// Goods are reserved; the card is to be charged.
    Reserved,
    /// The money is taken; the sale is to be confirmed.
    Charged,
    /// Sold.
    Confirmed,
    /// A step failed; what was done is being undone.
    Cancelling,
    /// Nothing was sold, nothing taken.
    Cancelled,
}

impl OrderState {
    /// Whether nothing more will happen.
    pub(crate) fn is_final(self) -> bool {
        matches!(self, Self::Confirmed | Self::Cancelled)
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Placed => "placed",
            Self::Reserved => "reserved",
            Self::Charged => "charged",
            Self::Confirmed => "confirmed",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    fn from_str(text: &str) -> Self {
        match text {
            "placed" => Self::Placed,
            "reserved" => Self::Reserved,
            "charged" => Self::Charged,
            "confirmed" => Self::Confirmed,
            "cancelling" => Self::Cancelling,
            _ => Self::Cancelled,
        }
    }
}

/// What is shown of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) id: String,
    pub(crate) state: OrderState,
    pub(crate) customer: String,
    /// Why it is cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) total_cents: Option<u64>,
    /// Of payments, which charged it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) payments_version: Option<String>,
    /// In order of time.
    pub(crate) history: Vec<Event>,
}

/// Something that happened to an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    pub(crate) order: String,
    pub(crate) event: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Seconds since 1970.
    pub(crate) at: i64,
}

/// An order as its saga sees it.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    pub(crate) id: String,
    pub(crate) state: OrderState,
    pub(crate) wanted: NewOrder,
    pub(crate) trace: TraceHeaders,
    pub(crate) total_cents: u64,
    /// How many steps are to be undone: 2: charge and reservation, 1: the reservation.
    pub(crate) undo: u32,
}

/// A saga's progress by one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Reserved {
        total_cents: u64,
    },
    Charged {
        version: String,
    },
    Confirmed,
    /// A step failed; so many are to be undone.
    Failed {
        reason: String,
        undo: u32,
    },
    Refunded,
    Released,
    Cancelled,
}

/// An order that was placed, now or before.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) order: Order,
    pub(crate) is_new: bool,
}

/// Why a call was refused or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("idempotency-key: it was used for another order")]
    KeyReused,
    #[error("the database failed")]
    Database(#[from] rusqlite::Error),
    #[error("the database holds what is no order")]
    Corrupt(#[from] serde_json::Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::KeyReused => Self::new(StatusCode::UNPROCESSABLE_ENTITY, error),
            Error::Database(_) | Error::Corrupt(_) => Self::internal(&error.into()),
        }
    }
}

/// The database of orders.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    database: Database,
}

impl Store {
    pub(crate) fn new(database: Database) -> Self {
        Self { database }
    }

    /// Writes an order down, once for each key.
    pub(crate) async fn place(
        &self,
        key: String,
        wanted: NewOrder,
        trace: String,
    ) -> Result<(Placed, Option<Event>), Error> {
        self.database
            .transact(move |transaction| {
                let before: Option<(String, String)> = transaction
                    .query_row("SELECT id, wanted FROM orders WHERE idempotency_key = ?1", [&key], |row| {
                        Ok((row.get(0)?, row.get(1)?))
                    })
                    .optional()?;
                if let Some((id, text)) = before {
                    let mut earlier: NewOrder = serde_json::from_str(&text)?;
                    // The card is forgotten when an order has come to its end.
                    if earlier.card.is_empty() {
                        earlier.card.clone_from(&wanted.card);
                    }
                    if earlier != wanted {
                        return Err(Error::KeyReused);
                    }
                    let order = find(transaction, &id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
                    return Ok((Placed { order, is_new: false }, None));
                }
                let id: String =
                    transaction.query_row("SELECT 'ord-' || lower(hex(randomblob(8)))", [], |row| row.get(0))?;
                transaction.execute(
                    "INSERT INTO orders (id, idempotency_key, wanted, trace, state) VALUES (?1, ?2, ?3, ?4, 'placed')",
                    (&id, &key, serde_json::to_string(&wanted)?, &trace),
                )?;
                let event = record(transaction, &id, "placed", None)?;
                let order = find(transaction, &id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
                Ok((Placed { order, is_new: true }, Some(event)))
            })
            .await
    }

    pub(crate) async fn find(&self, id: String) -> Result<Option<Order>, Error> {
        self.database.transact(move |transaction| find(transaction, &id)).await
    }

    /// What its saga needs of an order.
    pub(crate) async fn work(&self, id: String) -> Result<Work, Error> {
        self.database
            .transact(move |transaction| {
                let (state, wanted, trace, total_cents, undo): (String, String, String, Option<u64>, u32) = transaction
                    .query_row(
                        "SELECT state, wanted, trace, total_cents, undo FROM orders WHERE id = ?1",
                        [&id],
                        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)),
                    )?;
                Ok(Work {
                    state: OrderState::from_str(&state),
                    wanted: serde_json::from_str(&wanted)?,
                    trace: TraceHeaders::from_text(&trace),
                    total_cents: total_cents.unwrap_or_default(),
                    undo,
                    id,
                })
            })
            .await
    }

    /// Orders whose saga has not come to its end.
    pub(crate) async fn unfinished(&self) -> Result<Vec<String>, Error> {
        self.database
            .transact(|transaction| {
                let mut query = transaction
                    .prepare("SELECT id FROM orders WHERE state NOT IN ('confirmed', 'cancelled') ORDER BY rowid")?;
                let rows = query.query_map([], |row| row.get(0))?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    /// Writes down what the step of an order came to.
    pub(crate) async fn advance(&self, id: String, progress: Progress) -> Result<Event, Error> {
        self.database.transact(move |transaction| advance(transaction, &id, progress)).await
    }

    /// For bookkeeping: every order.
    pub(crate) async fn all(&self) -> Result<Vec<Order>, Error> {
        self.database
            .transact(|transaction| {
                let mut query = transaction.prepare("SELECT id FROM orders ORDER BY rowid")?;
                let ids: Vec<String> = query.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
                ids.iter().filter_map(|id| find(transaction, id).transpose()).collect()
            })
            .await
    }
}

fn advance(transaction: &Transaction<'_>, id: &str, progress: Progress) -> Result<Event, Error> {
    let set_state =
        |state: OrderState| transaction.execute("UPDATE orders SET state = ?2 WHERE id = ?1", (id, state.as_str()));
    let event = match progress {
        Progress::Reserved { total_cents } => {
            set_state(OrderState::Reserved)?;
            transaction.execute("UPDATE orders SET total_cents = ?2 WHERE id = ?1", (id, total_cents))?;
            record(transaction, id, "reserved", None)?
        }
        Progress::Charged { version } => {
            set_state(OrderState::Charged)?;
            transaction.execute("UPDATE orders SET payments_version = ?2 WHERE id = ?1", (id, version))?;
            record(transaction, id, "charged", None)?
        }
        Progress::Confirmed => {
            set_state(OrderState::Confirmed)?;
            forget_card(transaction, id)?;
            record(transaction, id, "confirmed", None)?
        }
        Progress::Failed { reason, undo } => {
            set_state(OrderState::Cancelling)?;
            transaction.execute("UPDATE orders SET reason = ?2, undo = ?3 WHERE id = ?1", (id, &reason, undo))?;
            record(transaction, id, "failed", Some(reason))?
        }
        Progress::Refunded => {
            transaction.execute("UPDATE orders SET undo = 1 WHERE id = ?1", [id])?;
            record(transaction, id, "refunded", None)?
        }
        Progress::Released => {
            transaction.execute("UPDATE orders SET undo = 0 WHERE id = ?1", [id])?;
            record(transaction, id, "released", None)?
        }
        Progress::Cancelled => {
            set_state(OrderState::Cancelled)?;
            forget_card(transaction, id)?;
            record(transaction, id, "cancelled", None)?
        }
    };
    Ok(event)
}

fn forget_card(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<usize> {
    transaction.execute("UPDATE orders SET wanted = json_set(wanted, '$.card', '') WHERE id = ?1", [id])
}

fn record(transaction: &Transaction<'_>, id: &str, event: &str, reason: Option<String>) -> rusqlite::Result<Event> {
    let event = Event { order: id.to_owned(), event: event.to_owned(), reason, at: now() };
    transaction.execute(
        "INSERT INTO events (order_id, event, reason, at) VALUES (?1, ?2, ?3, ?4)",
        (id, &event.event, &event.reason, event.at),
    )?;
    Ok(event)
}

fn find(transaction: &Transaction<'_>, id: &str) -> Result<Option<Order>, Error> {
    let read = |row: &Row<'_>| {
        Ok(Order {
            id: id.to_owned(),
            state: OrderState::from_str(row.get_ref(0)?.as_str()?),
            reason: row.get(1)?,
            total_cents: row.get(2)?,
            payments_version: row.get(3)?,
            customer: row.get(4)?,
            history: Vec::new(),
        })
    };
    let columns = "state, reason, total_cents, payments_version, json_extract(wanted, '$.customer')";
    let Some(mut order) =
        transaction.query_row(&format!("SELECT {columns} FROM orders WHERE id = ?1"), [id], read).optional()?
    else {
        return Ok(None);
    };
    let mut query = transaction.prepare("SELECT event, reason, at FROM events WHERE order_id = ?1 ORDER BY number")?;
    let events = query.query_map([id], |row| {
        Ok(Event { order: id.to_owned(), event: row.get(0)?, reason: row.get(1)?, at: row.get(2)? })
    })?;
    order.history = events.collect::<Result<_, _>>()?;
    Ok(Some(order))
}
