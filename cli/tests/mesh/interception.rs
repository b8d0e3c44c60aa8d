//! Traffic is captured without the application's knowledge, secured, and reaches the right place.
use anyhow::{Result, ensure};
use weft_loadtests::lab::testing::Test;

use crate::fixture::{Pair, seen};

pub const TESTS: &[Test] = &[
    ("a_plain_http_call_travels_by_mutual_tls_between_the_right_identities", mutual_tls),
];

fn mutual_tls() -> Result<()> {
    let pair = Pair::start("mtls")?;
    let _app = pair.serve_http()?;
    let capture = pair.mesh.lab.capture()?;
    let (status, body) = pair.get("/secret-path-4711")?;
    ensure!(status == 200, "{status} {body}");
    let request = seen(&body)?;
    let proof = request.header("x-forwarded-client-cert").unwrap_or_default().to_owned();
    ensure!(proof.contains("URI=spiffe://cluster.local/ns/shop/sa/client"), "{proof}");
    ensure!(proof.contains("By=spiffe://cluster.local/ns/shop/sa/server"), "{proof}");
    let frames = capture.stop()?;
    ensure!(!frames.is_empty() && !frames.contains("secret-path-4711"), "plaintext on the wire");
    Ok(())
}
