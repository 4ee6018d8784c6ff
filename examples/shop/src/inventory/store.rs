//! Stock and reservations. Every change is idempotent by the reservation's name.

use std::collections::BTreeMap;

use rusqlite::{OptionalExtension as _, Transaction};
use tonic::{Code, Status};

use super::proto::{Line, Product};
use crate::database::{Database, now};

/// Tables, and the goods of a new shop.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS products (
        sku TEXT PRIMARY KEY,
        name TEXT NOT NULL,
        price_cents INTEGER NOT NULL CHECK (price_cents > 0),
        initial_stock INTEGER NOT NULL,
        stock INTEGER NOT NULL CHECK (stock >= 0)
    ) STRICT;
    CREATE TABLE IF NOT EXISTS reservations (
        id TEXT PRIMARY KEY,
        state TEXT NOT NULL CHECK (state IN ('held', 'confirmed', 'released')),
        changed INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS reserved_lines (
        reservation TEXT NOT NULL REFERENCES reservations,
        sku TEXT NOT NULL REFERENCES products,
        quantity INTEGER NOT NULL CHECK (quantity > 0),
        price_cents INTEGER NOT NULL,
        PRIMARY KEY (reservation, sku)
    ) STRICT;
    INSERT OR IGNORE INTO products VALUES
        ('shuttle', 'Boat shuttle, cherry', 3450, 500, 500),
        ('reed-10', 'Reed, 10 dents', 5200, 500, 500),
        ('heddles-100', 'Texsolv heddles, 100', 1890, 500, 500),
        ('bobbin', 'Bobbin, cardboard', 120, 5000, 5000),
        ('yarn-wool', 'Wool yarn, 100 g', 980, 1000, 1000),
        ('floor-loom', 'Floor loom, eight shafts', 420000, 1000, 1000),
        ('dobby-antique', 'Antique dobby head, one of a kind', 89000, 1, 1);
";

const MAX_LINES: usize = 50;
const MAX_QUANTITY: u32 = 10_000;

/// What became of one product's stock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StockRow {
    pub(crate) sku: String,
    pub(crate) initial: i64,
    pub(crate) stock: i64,
    pub(crate) held: i64,
    pub(crate) sold: i64,
}

/// Why a call was refused or failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Refused(String),
    #[error("the database failed")]
    Database(#[from] rusqlite::Error),
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Invalid(_) => Code::InvalidArgument,
            Error::Refused(_) => Code::FailedPrecondition,
            Error::Database(cause) => {
                tracing::error!(%cause, "database");
                Code::Internal
            }
        };
        Self::new(code, error.to_string())
    }
}

/// The database of inventory.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    database: Database,
}

impl Store {
    pub(crate) fn new(database: Database) -> Self {
        Self { database }
    }

    pub(crate) async fn products(&self) -> Result<Vec<Product>, Error> {
        self.database
            .transact(|transaction| {
                let mut query =
                    transaction.prepare("SELECT sku, name, price_cents, stock FROM products ORDER BY sku")?;
                let rows = query.query_map([], |row| {
                    Ok(Product { sku: row.get(0)?, name: row.get(1)?, price_cents: row.get(2)?, stock: row.get(3)? })
                })?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    /// Takes the goods out of stock; the total in cents.
    pub(crate) async fn reserve(&self, reservation: String, lines: Vec<Line>) -> Result<u64, Error> {
        let wanted = parse(&reservation, &lines)?;
        self.database
            .transact(move |transaction| match state(transaction, &reservation)?.as_deref() {
                None => hold(transaction, &reservation, &wanted),
                Some("released") => Err(Error::Refused(format!("reservation {reservation} was released"))),
                Some(_) => again(transaction, &reservation, &wanted),
            })
            .await
    }

    /// The goods are sold.
    pub(crate) async fn confirm(&self, reservation: String) -> Result<(), Error> {
        self.database
            .transact(move |transaction| match state(transaction, &reservation)?.as_deref() {
                Some("held") => Ok(set_state(transaction, &reservation, "confirmed")?),
                Some("confirmed") => Ok(()),
                Some(_) => Err(Error::Refused(format!("reservation {reservation} was released"))),
                None => Err(Error::Refused(format!("there is no reservation {reservation}"))),
            })
            .await
    }

    /// Puts the goods back, even sold ones: the caller says that the sale is off.
    pub(crate) async fn release(&self, reservation: String) -> Result<(), Error> {
        check_name(&reservation)?;
        self.database
            .transact(move |transaction| match state(transaction, &reservation)?.as_deref() {
                Some("released") => Ok(()),
                Some(_) => {
                    transaction.execute(
                        "UPDATE products SET stock = stock + quantity FROM reserved_lines
                         WHERE reserved_lines.sku = products.sku AND reservation = ?1",
                        [&reservation],
                    )?;
                    Ok(set_state(transaction, &reservation, "released")?)
                }
                None => Ok(insert(transaction, &reservation, "released")?),
            })
            .await
    }

    /// For bookkeeping: where each product's stock went.
    pub(crate) async fn stock(&self) -> Result<Vec<StockRow>, Error> {
        self.database
            .transact(|transaction| {
                let mut query = transaction.prepare(
                    "SELECT p.sku, p.initial_stock, p.stock,
                            coalesce(sum(quantity) FILTER (WHERE state = 'held'), 0),
                            coalesce(sum(quantity) FILTER (WHERE state = 'confirmed'), 0)
                     FROM products p LEFT JOIN reserved_lines l USING (sku) LEFT JOIN reservations r ON r.id = l.reservation
                     GROUP BY p.sku ORDER BY p.sku",
                )?;
                let rows = query.query_map([], |row| {
                    Ok(StockRow {
                        sku: row.get(0)?,
                        initial: row.get(1)?,
                        stock: row.get(2)?,
                        held: row.get(3)?,
                        sold: row.get(4)?,
                    })
                })?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }

    /// For bookkeeping: every reservation's state.
    pub(crate) async fn reservations(&self) -> Result<BTreeMap<String, String>, Error> {
        self.database
            .transact(|transaction| {
                let mut query = transaction.prepare("SELECT id, state FROM reservations")?;
                let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok(rows.collect::<Result<_, _>>()?)
            })
            .await
    }
}

fn check_name(reservation: &str) -> Result<(), Error> {
    if reservation.is_empty() || reservation.len() > 100 {
        return Err(Error::Invalid("reservation: 1 to 100 characters".to_owned()));
    }
    Ok(())
}

/// Quantities by SKU; a SKU named twice counts twice.
fn parse(reservation: &str, lines: &[Line]) -> Result<BTreeMap<String, u32>, Error> {
    check_name(reservation)?;
    if lines.is_empty() || lines.len() > MAX_LINES {
        return Err(Error::Invalid(format!("lines: 1 to {MAX_LINES}")));
    }
    let mut wanted = BTreeMap::new();
    for (index, line) in lines.iter().enumerate() {
        if line.quantity == 0 || line.quantity > MAX_QUANTITY {
            return Err(Error::Invalid(format!("lines[{index}].quantity: 1 to {MAX_QUANTITY}")));
        }
        *wanted.entry(line.sku.clone()).or_insert(0) += line.quantity;
    }
    Ok(wanted)
}

fn state(transaction: &Transaction<'_>, reservation: &str) -> rusqlite::Result<Option<String>> {
    transaction.query_row("SELECT state FROM reservations WHERE id = ?1", [reservation], |row| row.get(0)).optional()
}

fn set_state(transaction: &Transaction<'_>, reservation: &str, state: &str) -> rusqlite::Result<()> {
    transaction
        .execute("UPDATE reservations SET state = ?2, changed = ?3 WHERE id = ?1", (reservation, state, now()))?;
    Ok(())
}

fn insert(transaction: &Transaction<'_>, reservation: &str, state: &str) -> rusqlite::Result<()> {
    transaction.execute("INSERT INTO reservations VALUES (?1, ?2, ?3)", (reservation, state, now()))?;
    Ok(())
}

fn hold(transaction: &Transaction<'_>, reservation: &str, wanted: &BTreeMap<String, u32>) -> Result<u64, Error> {
    insert(transaction, reservation, "held")?;
    let mut total = 0;
    for (sku, &quantity) in wanted {
        let (price, stock): (u32, u32) = transaction
            .query_row("SELECT price_cents, stock FROM products WHERE sku = ?1", [sku], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?
            .ok_or_else(|| Error::Refused(format!("there is no product {sku:?}")))?;
        if stock < quantity {
            return Err(Error::Refused(format!("{sku} is out of stock: {quantity} wanted, {stock} left")));
        }
        transaction.execute("UPDATE products SET stock = stock - ?2 WHERE sku = ?1", (sku, quantity))?;
        transaction
            .execute("INSERT INTO reserved_lines VALUES (?1, ?2, ?3, ?4)", (reservation, sku, quantity, price))?;
        total += u64::from(price) * u64::from(quantity);
    }
    Ok(total)
}

/// The answer to a call that was made before: the same, if it asks for the same.
fn again(transaction: &Transaction<'_>, reservation: &str, wanted: &BTreeMap<String, u32>) -> Result<u64, Error> {
    let mut query =
        transaction.prepare("SELECT sku, quantity, price_cents FROM reserved_lines WHERE reservation = ?1")?;
    let rows: Vec<(String, u32, u32)> =
        query.query_map([reservation], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect::<Result<_, _>>()?;
    let held: BTreeMap<String, u32> = rows.iter().map(|(sku, quantity, _)| (sku.clone(), *quantity)).collect();
    if held != *wanted {
        return Err(Error::Refused(format!("reservation {reservation} was made for other goods")));
    }
    Ok(rows.iter().map(|(_, quantity, price)| u64::from(*quantity) * u64::from(*price)).sum())
}
