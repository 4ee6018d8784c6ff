//! Bookkeeping over the databases of all services: does every order agree with what was sold and paid?

use std::{collections::BTreeMap, path::Path};

use crate::{
    database::Database,
    inventory::{self, StockRow},
    orders::{self, Order, OrderState},
    payments::{self, Charge, ChargeState},
};

/// Names of the databases in the shop's directory.
pub(crate) const ORDERS_DB: &str = "orders.db";
/// See [`ORDERS_DB`].
pub(crate) const PAYMENTS_DB: &str = "payments.db";
/// See [`ORDERS_DB`].
pub(crate) const INVENTORY_DB: &str = "inventory.db";

/// What the services wrote down.
#[derive(Clone, Debug)]
pub(crate) struct Books {
    pub(crate) orders: Vec<Order>,
    pub(crate) charges: BTreeMap<String, Charge>,
    pub(crate) reservations: BTreeMap<String, String>,
    pub(crate) stock: Vec<StockRow>,
    prices: BTreeMap<String, u32>,
}

impl Books {
    /// Reads the databases in a directory.
    pub(crate) async fn read(directory: &Path) -> anyhow::Result<Self> {
        let orders = orders::Store::new(Database::open(&directory.join(ORDERS_DB), orders::SCHEMA).await?);
        let payments = payments::Store::new(Database::open(&directory.join(PAYMENTS_DB), payments::SCHEMA).await?);
        let inventory = inventory::Store::new(Database::open(&directory.join(INVENTORY_DB), inventory::SCHEMA).await?);
        Ok(Self {
            orders: orders.all().await?,
            charges: payments.charges().await?.into_iter().map(|charge| (charge.id.clone(), charge)).collect(),
            reservations: inventory.reservations().await?,
            stock: inventory.stock().await?,
            prices: inventory.products().await?.into_iter().map(|product| (product.sku, product.price_cents)).collect(),
        })
    }

    /// How many orders are in a state.
    pub(crate) fn count(&self, state: OrderState) -> usize {
        self.orders.iter().filter(|order| order.state == state).count()
    }

    /// How many orders have not come to their end.
    pub(crate) fn unfinished(&self) -> usize {
        self.orders.iter().filter(|order| !order.state.is_final()).count()
    }

    /// What was taken and kept, in cents.
    pub(crate) fn takings(&self) -> u64 {
        let charged = self.charges.values().filter(|charge| charge.state == ChargeState::Charged);
        charged.map(|charge| charge.amount_cents).sum()
    }

    /// What was sold, in cents.
    pub(crate) fn sales(&self) -> u64 {
        let sold = |row: &StockRow| {
            u64::try_from(row.sold).unwrap_or(0) * u64::from(self.prices.get(&row.sku).copied().unwrap_or(0))
        };
        self.stock.iter().map(sold).sum()
    }

    /// Everything that does not add up.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = self.orders.iter().filter_map(|order| self.fault(order)).collect();
        for row in &self.stock {
            if row.initial != row.stock + row.held + row.sold {
                faults.push(format!("stock of {} does not add up: {row:?}", row.sku));
            }
        }
        let known = |id: &String| self.orders.iter().any(|order| order.id == *id);
        faults.extend(self.charges.keys().filter(|id| !known(id)).map(|id| format!("charge {id} has no order")));
        faults.extend(
            self.reservations.keys().filter(|id| !known(id)).map(|id| format!("reservation {id} has no order")),
        );
        if self.takings() != self.sales() {
            faults.push(format!("{} cents were taken, goods for {} sold", self.takings(), self.sales()));
        }
        faults
    }

    fn fault(&self, order: &Order) -> Option<String> {
        let charge = self.charges.get(&order.id);
        let paid = charge.is_some_and(|charge| charge.state == ChargeState::Charged);
        let reservation = self.reservations.get(&order.id).map(String::as_str);
        let adds_up = match order.state {
            OrderState::Confirmed => {
                paid && reservation == Some("confirmed")
                    && charge.map(|charge| charge.amount_cents) == order.total_cents
            }
            OrderState::Cancelled => !paid && matches!(reservation, None | Some("released")),
            _ => return Some(format!("order {} is still {:?}", order.id, order.state)),
        };
        (!adds_up).then(|| {
            format!("order {} is {:?}, its charge {charge:?}, its reservation {reservation:?}", order.id, order.state)
        })
    }
}
