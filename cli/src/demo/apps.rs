//! The applications of the shop: orders asks users and inventory. They speak plain HTTP and know nothing of the mesh.
//!
//! Each is a process of its own in its pod, run by the hidden subcommand `weft demo-app`. One that is told to stop
//! takes no more connections, answers what it was asked, and ends.
mod health;
mod stock;

use std::convert::Infallible;
use std::net::Ipv6Addr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

use super::http::{Answer, Client};
use stock::{Stock, StockError};

/// The port of every application.
pub(crate) const PORT: u16 = 8080;
/// Where orders finds users and inventory.
pub(crate) const USERS: &str = "users.shop.svc";
/// Where users and inventory find orders.
pub(crate) const ORDERS: &str = "orders.shop.svc";
/// See [`USERS`].
pub(crate) const INVENTORY: &str = "inventory.shop.svc";
/// What is under way when an application is told to stop gets this long.
const DRAIN: Duration = Duration::from_secs(20);
/// How long the buyer tries: the shop may be opening at the same time.
const PATIENCE: Duration = Duration::from_secs(120);

/// Flags of `weft demo-app`.
#[derive(Args, Clone, Debug)]
pub(crate) struct AppArgs {
    /// Which application.
    #[arg(value_enum)]
    app: App,
    /// Where orders finds users.
    #[arg(long, default_value = USERS)]
    users: String,
    /// Where orders finds inventory.
    #[arg(long, default_value = INVENTORY)]
    inventory: String,
    /// Where the buyer finds orders.
    #[arg(long, default_value = ORDERS)]
    orders: String,
    /// The PostgreSQL of inventory's stock, such as `host=postgres.shop.svc user=shop dbname=shop`; the password is the
    /// variable PGPASSWORD. Without it stock never ends and nothing is written.
    #[arg(long)]
    postgres: Option<String>,
}

/// An application of the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum App {
    /// `GET /orders/{id}`: asks the other two; `POST /orders/{id}`: and takes one from stock; `GET /health`.
    Orders,
    /// `GET /users/{id}`.
    Users,
    /// `GET /stock/{sku}`, `POST` takes one, `DELETE` all; `GET /reports/{name}`.
    Inventory,
    /// Places one order and ends.
    Buyer,
    /// Answers gRPC health checks: it is well.
    Health,
}

impl App {
    /// As the command line names it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Orders => "orders",
            Self::Users => "users",
            Self::Inventory => "inventory",
            Self::Buyer => "buyer",
            Self::Health => "health",
        }
    }
}

/// Serves until it is told to stop; the buyer until it has bought.
pub(crate) fn main(args: &AppArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match args.app {
        App::Buyer => runtime.block_on(buy(&args.orders)),
        App::Health => runtime.block_on(health::serve()),
        _ => runtime.block_on(serve(args)),
    }
}

/// What an application answers with.
struct Shop {
    app: App,
    users: String,
    inventory: String,
    stock: Stock,
    client: Client,
    pod: String,
}

async fn serve(args: &AppArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).await?;
    let shop = Arc::new(Shop {
        app: args.app,
        users: args.users.clone(),
        inventory: args.inventory.clone(),
        stock: Stock::new(args.postgres.as_deref())?,
        client: Client::default(),
        pod: nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned(),
    });
    println!("{} listens on port {PORT}", args.app.as_str());
    let (stop, stopping) = watch::channel(());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = terminate.recv() => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, or the client has gone: neither ends the application.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        tokio::spawn(connection(stream, Arc::clone(&shop), stopping.clone()));
    }
    drop((listener, stopping));
    stop.send_replace(());
    // Closed once no connection is left.
    let _ = tokio::time::timeout(DRAIN, stop.closed()).await;
    Ok(())
}

async fn connection(stream: TcpStream, shop: Arc<Shop>, mut stopping: watch::Receiver<()>) {
    let service = service_fn(move |request| {
        let shop = Arc::clone(&shop);
        async move { shop.answer(request).await }
    });
    let mut served = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = served.as_mut() => return,
        _ = stopping.changed() => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}

impl Shop {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
        let path = request.uri().path().trim_start_matches('/');
        let (collection, id) = path.split_once('/').unwrap_or((path, ""));
        let pod = &self.pod;
        // What the sidecar proved about the caller.
        let caller = request.headers().get("x-forwarded-client-cert").and_then(|value| value.to_str().ok());
        let (status, body) = match (self.app, request.method(), collection) {
            (_, &Method::GET, "live") => (StatusCode::OK, json!({"live": true})),
            (_, &Method::GET, "ready") => match self.stock.reachable().await {
                Ok(()) => (StatusCode::OK, json!({"ready": true})),
                Err(fault) => refusal(&fault),
            },
            (App::Orders, &Method::GET, "orders") => self.order(id, Method::GET).await,
            (App::Orders, &Method::POST, "orders") => self.order(id, Method::POST).await,
            (App::Orders, &Method::GET, "health") => (StatusCode::OK, json!({"healthy": true, "caller": caller})),
            (App::Users, &Method::GET, "users") => {
                (StatusCode::OK, json!({"user": id, "name": "Ada", "pod": pod, "caller": caller}))
            }
            (App::Inventory, &Method::GET, "stock") => match self.stock.left(id).await {
                Ok(left) => (StatusCode::OK, json!({"sku": id, "left": left, "pod": pod, "caller": caller})),
                Err(fault) => refusal(&fault),
            },
            (App::Inventory, &Method::POST, "stock") => match self.stock.take(id).await {
                Ok(left) => {
                    (StatusCode::OK, json!({"sku": id, "taken": 1, "left": left, "pod": pod, "caller": caller}))
                }
                Err(fault) => refusal(&fault),
            },
            (App::Inventory, &Method::DELETE, "stock") => match self.stock.delete(id).await {
                Ok(()) => (StatusCode::OK, json!({"sku": id, "deleted": true, "pod": pod})),
                Err(fault) => refusal(&fault),
            },
            (App::Inventory, &Method::GET, "reports") => {
                (StatusCode::OK, json!({"report": id, "pod": pod, "caller": caller}))
            }
            (app, method, _) => {
                (StatusCode::NOT_FOUND, json!({"error": format!("{} has no {method} /{path}", app.as_str())}))
            }
        };
        let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        Ok(response)
    }

    /// An order is complete or it is an error; what went wrong is also written to standard error.
    async fn order(&self, id: &str, stock_method: Method) -> (StatusCode, Value) {
        let (user_path, stock_path) = (format!("/users/{id}"), format!("/stock/{id}"));
        let (user, stock) = tokio::join!(
            self.client.call(Method::GET, &self.users, &user_path),
            self.client.call(stock_method.clone(), &self.inventory, &stock_path)
        );
        let user = part(&Method::GET, &self.users, &user_path, user);
        match (user, part(&stock_method, &self.inventory, &stock_path, stock)) {
            (Ok(user), Ok(stock)) => (StatusCode::OK, json!({"order": id, "user": user, "stock": stock})),
            (user, stock) => {
                let faults: Vec<String> = [user.err(), stock.err()].into_iter().flatten().collect();
                let text = faults.join("; ");
                eprintln!("an order failed: {text}");
                (StatusCode::BAD_GATEWAY, json!({"error": text}))
            }
        }
    }
}

fn refusal(fault: &StockError) -> (StatusCode, Value) {
    let status = match fault {
        StockError::Unknown(_) => StatusCode::NOT_FOUND,
        StockError::Sold(_) => StatusCode::CONFLICT,
        StockError::Database(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, json!({"error": fault.to_string()}))
}

fn part(method: &Method, host: &str, path: &str, answer: Result<Answer, String>) -> Result<Value, String> {
    let answer = answer.map_err(|fault| format!("{method} http://{host}{path}: {fault}"))?;
    if answer.status != 200 {
        return Err(format!("{method} http://{host}{path}: {} {}", answer.status, answer.body.trim()));
    }
    serde_json::from_str(&answer.body).map_err(|fault| format!("{method} http://{host}{path}: {fault}"))
}

/// One order, as soon as the shop takes it.
async fn buy(orders: &str) -> anyhow::Result<()> {
    let client = Client::default();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let refused = match client.call(Method::POST, orders, "/orders/4711").await {
            Ok(Answer { status: 200, body }) => {
                println!("bought: {body}");
                return Ok(());
            }
            Ok(Answer { status, body }) => format!("{status} {}", body.trim()),
            Err(fault) => fault,
        };
        anyhow::ensure!(Instant::now() < deadline, "no order was taken within {PATIENCE:?}: {refused}");
        eprintln!("not yet: {refused}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
