//! Charges. Every change is idempotent by the charge's name.

use axum::http::StatusCode;
use rusqlite::{OptionalExtension as _, Row, Transaction};

use super::{Charge, ChargeRequest, ChargeState};
use crate::{
    database::{Database, now},
    service::Refusal,
};

/// Tables.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS charges (
        id TEXT PRIMARY KEY,
        state TEXT NOT NULL CHECK (state IN ('charged', 'declined', 'refunded')),
        amount_cents INTEGER NOT NULL,
        card_last4 TEXT NOT NULL,
        reason TEXT,
        version TEXT NOT NULL,
        changed INTEGER NOT NULL
    ) STRICT;
";

/// No card pays more at once.
const LIMIT_CENTS: u64 = 1_000_000;

/// Why a call was refused or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("charge {0} was made for another card or amount")]
    Other(String),
    #[error("the database failed")]
    Database(#[from] rusqlite::Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::Other(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, error),
            Error::Database(_) => Self::internal(&error.into()),
        }
    }
}

/// The database of payments.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    database: Database,
}

impl Store {
    pub(crate) fn new(database: Database) -> Self {
        Self { database }
    }

    /// Takes the money, unless that was decided before.
    pub(crate) async fn charge(&self, id: String, request: ChargeRequest, version: String) -> Result<Charge, Error> {
        let card_last4 = request.card[request.card.len() - 4..].to_owned();
        self.database
            .transact(move |transaction| {
                if let Some(made) = find(transaction, &id)? {
                    let same = made.amount_cents == request.amount_cents && made.card_last4 == card_last4;
                    // What was refunded before it was ever charged has neither card nor amount.
                    return if same || made.state == ChargeState::Refunded { Ok(made) } else { Err(Error::Other(id)) };
                }
                let reason = decline(&card_last4, request.amount_cents);
                let state = if reason.is_some() { ChargeState::Declined } else { ChargeState::Charged };
                let charge = Charge { id, state, amount_cents: request.amount_cents, card_last4, reason, version };
                insert(transaction, &charge)?;
                Ok(charge)
            })
            .await
    }

    /// Gives the money back.
    pub(crate) async fn refund(&self, id: String, version: String) -> Result<Charge, Error> {
        self.database
            .transact(move |transaction| match find(transaction, &id)? {
                Some(charge) if charge.state == ChargeState::Charged => {
                    transaction
                        .execute("UPDATE charges SET state = 'refunded', changed = ?2 WHERE id = ?1", (&id, now()))?;
                    Ok(Charge { state: ChargeState::Refunded, ..charge })
                }
                Some(charge) => Ok(charge),
                None => {
                    let void = Charge {
                        id,
                        state: ChargeState::Refunded,
                        amount_cents: 0,
                        card_last4: String::new(),
                        reason: Some("refunded before it was charged".to_owned()),
                        version,
                    };
                    insert(transaction, &void)?;
                    Ok(void)
                }
            })
            .await
    }

    pub(crate) async fn find(&self, id: String) -> Result<Option<Charge>, Error> {
        self.database.transact(move |transaction| Ok(find(transaction, &id)?)).await
    }

    /// For bookkeeping: every charge.
    pub(crate) async fn charges(&self) -> Result<Vec<Charge>, Error> {
        self.database
            .transact(|transaction| {
                let mut query = transaction.prepare(&format!("{SELECT} ORDER BY id"))?;
                let rows = query.query_map([], read)?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }
}

/// Why a card does not pay.
fn decline(card_last4: &str, amount_cents: u64) -> Option<String> {
    if card_last4 == "0002" {
        return Some("the card was declined by its bank".to_owned());
    }
    (amount_cents > LIMIT_CENTS).then(|| format!("more than {}.00 at once", LIMIT_CENTS / 100))
}

const SELECT: &str = "SELECT id, state, amount_cents, card_last4, reason, version FROM charges";

fn find(transaction: &Transaction<'_>, id: &str) -> rusqlite::Result<Option<Charge>> {
    transaction.query_row(&format!("{SELECT} WHERE id = ?1"), [id], read).optional()
}

fn read(row: &Row<'_>) -> rusqlite::Result<Charge> {
    let state = match row.get_ref(1)?.as_str()? {
        "charged" => ChargeState::Charged,
        "declined" => ChargeState::Declined,
        _ => ChargeState::Refunded,
    };
    Ok(Charge {
        id: row.get(0)?,
        state,
        amount_cents: row.get(2)?,
        card_last4: row.get(3)?,
        reason: row.get(4)?,
        version: row.get(5)?,
    })
}

fn insert(transaction: &Transaction<'_>, charge: &Charge) -> rusqlite::Result<()> {
    let state = match charge.state {
        ChargeState::Charged => "charged",
        ChargeState::Declined => "declined",
        ChargeState::Refunded => "refunded",
    };
    transaction.execute(
        "INSERT INTO charges VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        (&charge.id, state, charge.amount_cents, &charge.card_last4, &charge.reason, &charge.version, now()),
    )?;
    Ok(())
}
