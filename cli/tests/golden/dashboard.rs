//! The Grafana dashboard of the chart, as Grafana would use it.
use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/weft/files/dashboards/weft.json");
/// In Grafana four scrapes at least.
const RATE_INTERVAL: &str = "15s";

pub struct Dashboard(Value);

/// A query of a panel.
pub struct Query {
    /// Panel and letter.
    pub of: String,
    /// With variables.
    pub expression: String,
}

/// A variable whose values come from Prometheus.
pub struct Variable {
    pub name: String,
    /// What stands for all values.
    pub all: String,
    pub label: String,
    /// With variables.
    pub selector: String,
}

impl Dashboard {
    pub fn read() -> Result<Self> {
        let text = std::fs::read_to_string(FILE).context(FILE)?;
        Ok(Self(serde_json::from_str(&text).context(FILE)?))
    }

    fn panels(&self) -> impl Iterator<Item = &Value> {
        self.0["panels"].as_array().into_iter().flatten().filter(|panel| panel["type"] != "row")
    }

    /// Every query of every panel, and of the annotations.
    pub fn queries(&self) -> Result<Vec<Query>> {
        let mut queries = Vec::new();
        for panel in self.panels() {
            for target in panel["targets"].as_array().context("a panel without queries")? {
                let expression = target["expr"].as_str().context("a query without an expression")?.to_owned();
                queries.push(Query { of: format!("{} {}", panel["title"], target["refId"]), expression });
            }
        }
        for annotation in self.0["annotations"]["list"].as_array().context("no annotations")? {
            if let Some(expression) = annotation["expr"].as_str() {
                queries.push(Query { of: annotation["name"].to_string(), expression: expression.to_owned() });
            }
        }
        Ok(queries)
    }

    /// The variables that are looked up, in their order: later ones may use earlier ones.
    pub fn variables(&self) -> Result<Vec<Variable>> {
        let list = self.0["templating"]["list"].as_array().context("no variables")?;
        let looked_up = list.iter().filter(|variable| variable["type"] == "query");
        looked_up
            .map(|variable| {
                let text = |value: &Value| value.as_str().map(str::to_owned).context("not a text");
                let query = text(&variable["query"]["query"])?;
                let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
                let (selector, label) = inner.and_then(|inner| inner.rsplit_once(", ")).context("no label_values")?;
                Ok(Variable {
                    name: text(&variable["name"])?,
                    all: text(&variable["allValue"])?,
                    label: label.to_owned(),
                    selector: selector.to_owned(),
                })
            })
            .collect()
    }

    /// The choices of a variable whose choices are written down.
    pub fn choices(&self, name: &str) -> Result<Vec<String>> {
        let list = self.0["templating"]["list"].as_array().context("no variables")?;
        let variable = list.iter().find(|variable| variable["name"] == name).with_context(|| format!("no ${name}"))?;
        let options = variable["options"].as_array().context("no options")?;
        options.iter().map(|option| option["value"].as_str().map(str::to_owned).context("no value")).collect()
    }
}

/// The expression with its variables replaced, as Grafana replaces them.
pub fn substituted(expression: &str, variables: &BTreeMap<String, String>) -> Result<String> {
    let mut text = expression.replace("$__rate_interval", RATE_INTERVAL);
    for (name, value) in variables {
        text = text.replace(&format!("${name}"), value);
    }
    ensure!(!text.contains('$'), "a variable that does not exist: {text}");
    Ok(text)
}

/// A person who sees it for the first time can read it.
pub fn is_described() -> Result<()> {
    let dashboard = Dashboard::read()?;
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard.panels() {
        let title = panel["title"].as_str().context("a panel without a title")?;
        ensure!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{title}: no description");
        ensure!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}: no unit");
        ensure!(panel["datasource"]["uid"] == "${datasource}", "{title}: a data source of its own");
        ensure!(ids.insert(panel["id"].as_u64()), "{title}: its id is taken");
        let at = |name: &str| panel["gridPos"][name].as_u64().with_context(|| format!("{title}: no {name}"));
        for (x, y) in (at("x")?..at("x")? + at("w")?).flat_map(|x| (0..at("h").unwrap_or(0)).map(move |y| (x, y))) {
            ensure!(x < 24 && cells.insert((x, at("y")? + y)), "{title}: lies over another panel");
        }
    }
    ensure!(ids.len() > 40, "{} panels", ids.len());
    Ok(())
}
