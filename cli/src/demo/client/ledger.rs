//! Load with a ledger: each request that was sent ends in it as `ok` (2xx) or `failed`, with the reason.
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use weft_loadtests::load::{Pace, Plan, Report};

use super::{LoadArgs, PRINT};

/// Until told to stop, or until the number of requests is reached. The last line has every request in it.
pub(super) async fn keep(args: &LoadArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let pace = args.rate.map_or(Pace::Closed, |per_second| Pace::Open { per_second });
    let plan = Plan::get(args.url.clone()).body(args.method.clone(), "").pace(pace).connections(args.connections);
    let mut load = args.requests.into_iter().fold(plan, Plan::requests).start()?;
    let mut every = tokio::time::interval(PRINT);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            () = load.finished() => break,
            _ = every.tick() => println!("{}", line(&load.report())),
        }
    }
    println!("{}", line(&load.stop().await));
    Ok(())
}

fn line(report: &Report) -> Value {
    let ok: u64 = (200..300).map(|status| report.status(status)).sum();
    let sent = report.answered() + report.failed();
    let slowest = report.latency.quantile(1.0).as_millis();
    let (by_status, errors) = (&report.by_status, &report.errors);
    json!({"sent": sent, "ok": ok, "failed": sent - ok, "by_status": by_status, "errors": errors, "slowest_ms": slowest})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_in_the_ledger_once_and_only_2xx_is_ok() {
        let report = Report {
            by_status: [(200, 5), (204, 1), (302, 1), (429, 2), (503, 3)].into(),
            errors: [("connect: refused".to_owned(), 4)].into(),
            ..Report::default()
        };
        let line = line(&report);
        assert_eq!((&line["sent"], &line["ok"], &line["failed"]), (&json!(16), &json!(6), &json!(10)));
        assert_eq!((&line["by_status"]["429"], &line["errors"]["connect: refused"]), (&json!(2), &json!(4)));
    }
}
