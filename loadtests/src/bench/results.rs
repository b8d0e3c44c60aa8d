//! What was measured, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::peer::PeerKind;
use super::row::{Bar, Row};

/// What one measurement can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Figure {
    /// CPU time of both sidecars for each unit of the row, in pieces of the calibration's work.
    Cpu,
    /// The same in microseconds.
    RawCpu,
    /// Microseconds that a piece of the calibration took.
    Calibration,
    PerSecond,
    MibPerSecond,
    /// Latency in milliseconds.
    P50,
    P99,
    KibEach,
    ResidentMib,
}

impl Figure {
    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::RawCpu => "cpu_us",
            Self::Calibration => "calibration_us",
            Self::PerSecond => "per_second",
            Self::MibPerSecond => "mib_per_second",
            Self::P50 => "p50_ms",
            Self::P99 => "p99_ms",
            Self::KibEach => "kib_each",
            Self::ResidentMib => "resident_mib",
        }
    }
}

/// The figures of one measurement.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures(BTreeMap<Figure, f64>);

impl Figures {
    pub(super) fn set(&mut self, figure: Figure, value: f64) {
        self.0.insert(figure, value);
    }

    fn get(&self, figure: Figure) -> Option<f64> {
        self.0.get(&figure).copied()
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (figure, value)) in self.0.iter().enumerate() {
            write!(f, "{}{} {value:.3}", if index > 0 { ", " } else { "" }, figure.name())?;
        }
        Ok(())
    }
}

/// Everything that was measured.
#[derive(Debug)]
pub struct Results {
    rows: Vec<&'static Row>,
    peers: Vec<PeerKind>,
    window: Duration,
    /// A measurement a round.
    measured: BTreeMap<(&'static str, PeerKind), Vec<Figures>>,
}

/// What became of one bar.
struct Verdict {
    bar: Bar,
    /// What Weft has; `None`: what it is compared with is not there.
    weft: Option<String>,
    met: Option<bool>,
}

impl Results {
    pub(super) fn new(rows: &[&'static Row], peers: &[PeerKind], window: Duration) -> Self {
        Self { rows: rows.to_vec(), peers: peers.to_vec(), window, measured: BTreeMap::new() }
    }

    pub(super) fn add(&mut self, row: &'static Row, peer: PeerKind, figures: Figures) {
        self.measured.entry((row.name, peer)).or_default().push(figures);
    }

    fn of(&self, row: &Row, peer: PeerKind) -> &[Figures] {
        self.measured.get(&(row.name, peer)).map_or(&[], Vec::as_slice)
    }

    fn median(&self, row: &Row, peer: PeerKind, figure: Figure) -> Option<f64> {
        median(self.of(row, peer).iter().filter_map(|figures| figures.get(figure)).collect())
    }

    /// The median over the rounds of the ratio to another peer in the same round.
    fn ratio(&self, row: &Row, peer: PeerKind, other: PeerKind, figure: Figure) -> Option<f64> {
        let pairs = self.of(row, peer).iter().zip(self.of(row, other));
        median(pairs.filter_map(|(own, other)| Some(own.get(figure)? / other.get(figure)?)).collect())
    }

    fn verdict(&self, row: &Row, bar: Bar) -> Verdict {
        use PeerKind::{Envoy, Haproxy, Weft};
        let (weft, met) = match bar {
            Bar::Cpu(bar) => {
                let ratio = self.ratio(row, Weft, Envoy, Figure::Cpu);
                (ratio.map(|ratio| format!("{ratio:.3}")), ratio.map(|ratio| ratio <= bar))
            }
            Bar::Throughput(bar) => {
                let ratio = self.ratio(row, Weft, Envoy, Figure::MibPerSecond);
                (ratio.map(|ratio| format!("{ratio:.2}")), ratio.map(|ratio| ratio >= bar))
            }
            Bar::LatencyOfHaproxy => {
                let p50 = self.ratio(row, Weft, Haproxy, Figure::P50);
                let p99 = self.ratio(row, Weft, Haproxy, Figure::P99);
                let both = p50.zip(p99);
                (
                    both.map(|(p50, p99)| format!("{p50:.2}, {p99:.2} of it")),
                    both.map(|(p50, p99)| p50 <= 1.0 && p99 <= 1.0),
                )
            }
            Bar::KibEach(bar) => {
                let each = self.median(row, Weft, Figure::KibEach);
                (each.map(|each| format!("{each:.1} KiB")), each.map(|each| each <= bar))
            }
            Bar::Resident(bar) => {
                let size = self.median(row, Weft, Figure::ResidentMib);
                (size.map(|size| format!("{size:.1} MiB")), size.map(|size| size <= bar))
            }
        };
        Verdict { bar, weft, met }
    }

    /// Everything, for other programs: medians, ratios, verdicts and each round's figures.
    pub fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let peers = self.peers.iter().map(|peer| {
                let rounds = self.of(row, *peer);
                let each = |figures: &Figures| -> Value {
                    figures.0.iter().map(|(figure, value)| (figure.name().to_owned(), json!(value))).collect()
                };
                let medians: serde_json::Map<String, Value> = rounds
                    .iter()
                    .flat_map(|figures| figures.0.keys())
                    .filter_map(|figure| Some((figure.name().to_owned(), json!(self.median(row, *peer, *figure)?))))
                    .collect();
                let value = json!({
                    "cpu_to_envoy": self.ratio(row, *peer, PeerKind::Envoy, Figure::Cpu),
                    "median": medians,
                    "rounds": rounds.iter().map(each).collect::<Vec<_>>(),
                });
                (peer.name().to_owned(), value)
            });
            let bars = row.bars.iter().map(|bar| {
                let verdict = self.verdict(row, *bar);
                json!({"bar": verdict.bar.to_string(), "weft": verdict.weft, "met": verdict.met})
            });
            json!({
                "name": row.name, "work": row.what, "unit": row.unit,
                "peers": peers.collect::<serde_json::Map<_, _>>(), "bars": bars.collect::<Vec<_>>(),
            })
        });
        json!({"window_seconds": self.window.as_secs_f64(), "rows": rows.collect::<Vec<_>>()})
    }
}

/// Two tables in Markdown: Weft against its bars, then every peer's figures.
impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| row | work | bar | Weft | |\n|---|---|---|---|---|")?;
        for row in &self.rows {
            for bar in row.bars {
                let verdict = self.verdict(row, *bar);
                let weft = verdict.weft.as_deref().unwrap_or("not measured");
                let met = verdict.met.map_or("", |met| if met { "met" } else { "**missed**" });
                writeln!(f, "| `{}` | {} | {} | {weft} | {met} |", row.name, row.what, verdict.bar)?;
            }
        }
        writeln!(
            f,
            "\n| row | peer | CPU, Envoy = 1 | CPU | rate | p50, p99 ms | memory |\n|---|---|---|---|---|---|---|"
        )?;
        for row in &self.rows {
            for peer in &self.peers {
                let of = |figure| self.median(row, *peer, figure);
                let text = |value: Option<String>| value.unwrap_or_default();
                let ratio =
                    text(self.ratio(row, *peer, PeerKind::Envoy, Figure::Cpu).map(|ratio| format!("{ratio:.3}")));
                let cpu = text(of(Figure::RawCpu).map(|cpu| match cpu {
                    10_000.0.. => format!("{:.0} ms a {}", cpu / 1000.0, row.unit),
                    _ => format!("{cpu:.1} µs a {}", row.unit),
                }));
                let rate = of(Figure::PerSecond).map(|rate| format!("{rate:.0}/s"));
                let rate = text(rate.or(of(Figure::MibPerSecond).map(|rate| format!("{rate:.0} MiB/s"))));
                let latency =
                    text(of(Figure::P50).zip(of(Figure::P99)).map(|(p50, p99)| format!("{p50:.2}, {p99:.2}")));
                let memory = of(Figure::KibEach).map(|each| format!("{each:.1} KiB each"));
                let memory = text(memory.or(of(Figure::ResidentMib).map(|size| format!("{size:.1} MiB"))));
                writeln!(f, "| `{}` | {} | {ratio} | {cpu} | {rate} | {latency} | {memory} |", row.name, peer.name())?;
            }
        }
        let pieces = self.measured.values().flatten().filter_map(|figures| figures.get(Figure::Calibration));
        let (slow, fast) = pieces.fold((f64::MIN, f64::MAX), |(slow, fast), piece| (slow.max(piece), fast.min(piece)));
        if slow > 0.0 {
            writeln!(
                f,
                "\nThe fixed piece of work took {fast:.0} to {slow:.0} µs of CPU time beside the measurements."
            )?;
        }
        Ok(())
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::row;

    fn results(rounds: &[(f64, f64)]) -> Results {
        let row = row::find("http1").expect("it is a row");
        let mut results = Results::new(&[row], &[PeerKind::Weft, PeerKind::Envoy], Duration::from_secs(1));
        for (weft, envoy) in rounds {
            for (peer, value) in [(PeerKind::Weft, weft), (PeerKind::Envoy, envoy)] {
                let mut figures = Figures::default();
                figures.set(Figure::Cpu, *value);
                results.add(row, peer, figures);
            }
        }
        results
    }

    #[test]
    fn ratios_are_of_the_same_round_and_their_median_counts() {
        // A machine that is twice as slow in the second round, and an outlier.
        let results = results(&[(2.0, 10.0), (4.0, 20.0), (9.0, 10.0)]);
        let row = results.rows[0];
        assert_eq!(results.ratio(row, PeerKind::Weft, PeerKind::Envoy, Figure::Cpu), Some(0.2));
        assert!(results.to_string().contains("| 0.200 | met |"), "{results}");
    }

    #[test]
    fn a_missed_bar_is_said_and_an_absent_peer_decides_nothing() {
        assert!(results(&[(3.0, 10.0)]).to_string().contains("| 0.300 | **missed** |"));
        let mut alone = results(&[]);
        let row = alone.rows[0];
        alone.add(row, PeerKind::Weft, Figures::default());
        assert!(alone.to_string().contains("| not measured |  |"), "{alone}");
    }

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        for (values, expected) in [(vec![], None), (vec![3.0], Some(3.0)), (vec![4.0, 1.0, 2.0, 9.0], Some(3.0))] {
            assert_eq!(median(values), expected);
        }
    }
}
