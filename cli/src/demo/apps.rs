//! The applications of the shop: orders asks users and inventory. They speak plain HTTP and know nothing of the mesh.
//!
//! Each is a process of its own in its pod, run by the hidden subcommand `weft demo-app`.
use std::convert::Infallible;
use std::net::Ipv6Addr;
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
use tokio::net::TcpListener;

use super::http::{Answer, Client};

/// The port of every application.
pub(crate) const PORT: u16 = 8080;
/// Where orders finds users and inventory.
pub(crate) const USERS: &str = "users.shop.svc";
/// Where users and inventory find orders.
pub(crate) const ORDERS: &str = "orders.shop.svc";
/// See [`USERS`].
pub(crate) const INVENTORY: &str = "inventory.shop.svc";

/// Flags of `weft demo-app`.
#[derive(Args, Clone, Debug)]
pub(crate) struct AppArgs {
    /// Which application.
    #[arg(value_enum)]
    app: App,
}

/// An application of the shop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum App {
    /// `GET /orders/{id}`: asks the other two; `GET /health`.
    Orders,
    /// `GET /users/{id}`.
    Users,
    /// `GET /stock/{sku}`, `DELETE /stock/{sku}`, `GET /reports/{name}`.
    Inventory,
}

impl App {
    /// As the command line names it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Orders => "orders",
            Self::Users => "users",
            Self::Inventory => "inventory",
        }
    }
}

/// Serves until it is killed.
pub(crate) fn main(args: &AppArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(args.app))
}

async fn serve(app: App) -> anyhow::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).await?;
    let client = Arc::new(Client::default());
    println!("{} listens on port {PORT}", app.as_str());
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, or the client has gone: neither ends the application.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let client = Arc::clone(&client);
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(app, Arc::clone(&client), request));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    app: App,
    client: Arc<Client>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().trim_start_matches('/');
    let (collection, id) = path.split_once('/').unwrap_or((path, ""));
    let pod = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned();
    // What the sidecar proved about the caller.
    let caller = request.headers().get("x-forwarded-client-cert").and_then(|value| value.to_str().ok());
    let (status, body) = match (app, request.method(), collection) {
        (App::Orders, &Method::GET, "orders") => order(&client, id).await,
        (App::Orders, &Method::GET, "health") => (StatusCode::OK, json!({"healthy": true, "caller": caller})),
        (App::Users, &Method::GET, "users") => {
            (StatusCode::OK, json!({"user": id, "name": "Ada", "pod": pod, "caller": caller}))
        }
        (App::Inventory, &Method::GET, "stock") => {
            (StatusCode::OK, json!({"sku": id, "left": 7, "pod": pod, "caller": caller}))
        }
        (App::Inventory, &Method::DELETE, "stock") => (StatusCode::OK, json!({"sku": id, "deleted": true, "pod": pod})),
        (App::Inventory, &Method::GET, "reports") => {
            (StatusCode::OK, json!({"report": id, "pod": pod, "caller": caller}))
        }
        _ => (StatusCode::NOT_FOUND, json!({"error": format!("{} has no {} /{path}", app.as_str(), request.method())})),
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// An order is complete or it is an error; what went wrong is also written to standard error.
async fn order(client: &Client, id: &str) -> (StatusCode, Value) {
    let (user_path, stock_path) = (format!("/users/{id}"), format!("/stock/{id}"));
    let (user, stock) =
        tokio::join!(client.call(Method::GET, USERS, &user_path), client.call(Method::GET, INVENTORY, &stock_path));
    match (part(USERS, &user_path, user), part(INVENTORY, &stock_path, stock)) {
        (Ok(user), Ok(stock)) => (StatusCode::OK, json!({"order": id, "user": user, "stock": stock})),
        (user, stock) => {
            let faults: Vec<String> = [user.err(), stock.err()].into_iter().flatten().collect();
            let text = faults.join("; ");
            eprintln!("an order failed: {text}");
            (StatusCode::BAD_GATEWAY, json!({"error": text}))
        }
    }
}

fn part(host: &str, path: &str, answer: Result<Answer, String>) -> Result<Value, String> {
    let answer = answer.map_err(|fault| format!("GET http://{host}{path}: {fault}"))?;
    if answer.status != 200 {
        return Err(format!("GET http://{host}{path}: {} {}", answer.status, answer.body.trim()));
    }
    serde_json::from_str(&answer.body).map_err(|fault| format!("GET http://{host}{path}: {fault}"))
}
