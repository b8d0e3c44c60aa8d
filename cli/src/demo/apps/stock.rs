//! The stock of inventory: a table in PostgreSQL, or, without one, seven of everything for ever.
//!
//! Speaks plain PostgreSQL and knows nothing of the mesh. A connection is made when it is first needed and again after
//! it broke; a statement that failed is never repeated.
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, NoTls, Row};

/// After this a statement has failed, with its connection.
const TIMEOUT: Duration = Duration::from_secs(3);
/// What there is of everything where there is no database.
const ENDLESS: i64 = 7;

/// See the module.
pub(super) struct Stock(Option<Database>);

struct Database {
    config: Config,
    client: Mutex<Option<Arc<Client>>>,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum StockError {
    /// No such thing.
    Unknown(String),
    /// None left.
    Sold(String),
    /// PostgreSQL did not answer.
    Database(String),
}

impl std::fmt::Display for StockError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown(sku) => write!(f, "there is no {sku}"),
            Self::Sold(sku) => write!(f, "no {sku} is left"),
            Self::Database(fault) => write!(f, "PostgreSQL: {fault}"),
        }
    }
}

impl Stock {
    /// `postgres` as libpq writes it; the password from PGPASSWORD, as PostgreSQL's own programs take it.
    pub(super) fn new(postgres: Option<&str>) -> anyhow::Result<Self> {
        let Some(text) = postgres else { return Ok(Self(None)) };
        let mut config: Config = text.parse().map_err(|fault| {
            anyhow::anyhow!("--postgres: {fault}; write for example host=postgres user=shop dbname=shop")
        })?;
        if let Ok(password) = std::env::var("PGPASSWORD") {
            config.password(password);
        }
        config.connect_timeout(TIMEOUT);
        Ok(Self(Some(Database { config, client: Mutex::new(None) })))
    }

    /// Whether stock can be asked for.
    pub(super) async fn reachable(&self) -> Result<(), StockError> {
        match &self.0 {
            None => Ok(()),
            Some(database) => database.row("SELECT $1", "").await.map(|_| ()),
        }
    }

    /// How many there are.
    pub(super) async fn left(&self, sku: &str) -> Result<i64, StockError> {
        let Some(database) = &self.0 else { return Ok(ENDLESS) };
        let row = database.row("SELECT units FROM stock WHERE sku = $1", sku).await?;
        row.map(|row| row.get(0)).ok_or_else(|| StockError::Unknown(sku.to_owned()))
    }

    /// Takes one and tells how many are left.
    pub(super) async fn take(&self, sku: &str) -> Result<i64, StockError> {
        let Some(database) = &self.0 else { return Ok(ENDLESS) };
        let take = "UPDATE stock SET units = units - 1 WHERE sku = $1 AND units > 0 RETURNING units";
        match database.row(take, sku).await? {
            Some(row) => Ok(row.get(0)),
            None => self.left(sku).await.and(Err(StockError::Sold(sku.to_owned()))),
        }
    }

    /// Takes it out of the shop.
    pub(super) async fn delete(&self, sku: &str) -> Result<(), StockError> {
        let Some(database) = &self.0 else { return Ok(()) };
        let row = database.row("DELETE FROM stock WHERE sku = $1 RETURNING sku", sku).await?;
        row.map(|_| ()).ok_or_else(|| StockError::Unknown(sku.to_owned()))
    }
}

impl Database {
    /// The first row of one statement with one text.
    async fn row(&self, statement: &str, text: &str) -> Result<Option<Row>, StockError> {
        let answer = tokio::time::timeout(TIMEOUT, async {
            let client = self.connected().await?;
            client.query_typed(statement, &[(&text, Type::TEXT)]).await
        });
        match answer.await {
            Ok(Ok(rows)) => Ok(rows.into_iter().next()),
            Ok(Err(fault)) => Err(StockError::Database(with_causes(&fault))),
            Err(_) => {
                // Whatever it is waiting for, the next statement shall not.
                *self.client.lock().await = None;
                Err(StockError::Database(format!("no answer within {TIMEOUT:?}")))
            }
        }
    }

    async fn connected(&self) -> Result<Arc<Client>, tokio_postgres::Error> {
        let mut kept = self.client.lock().await;
        if let Some(client) = kept.as_ref().filter(|client| !client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let (client, connection) = self.config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(Arc::clone(kept.insert(Arc::new(client))))
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| (*cause).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::Stock;

    #[test]
    fn a_wrong_connection_string_says_what_to_write() {
        let fault = Stock::new(Some("nonsense")).map(|_| ()).expect_err("no key").to_string();
        assert!(fault.starts_with("--postgres: ") && fault.contains("host=postgres"), "{fault}");
    }
}
