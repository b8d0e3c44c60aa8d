//! The golden signals of the chart, dashboard, rules and scrape configurations, against a real Prometheus.
#![allow(missing_docs, unreachable_pub)]

mod dashboard;
mod lab;
mod live;
mod prometheus;
mod promql;
mod rules;

use weft_loadtests::lab::testing::{self, Test};

fn main() {
    // Before any thread: the lab runs this program again for its own duties.
    weft_loadtests::lab::init();
    let mut tests: Vec<Test> = vec![
        ("the_selectors_of_an_expression_are_found", promql::finds_what_is_asked_for),
        ("every_panel_of_the_dashboard_says_what_it_shows", dashboard::is_described),
        ("what_a_lab_cannot_have_is_registered_on_kubernetes", live::those_of_kubernetes_are_registered),
        ("every_alert_says_how_bad_it_is_and_what_to_do", rules::are_documented),
    ];
    let mut missing = Vec::new();
    let programs: [(Test, bool); 2] = [
        (("the_rules_keep_their_unit_tests", rules::keep_their_unit_tests), prometheus::promtool().is_some()),
        (
            ("every_query_of_the_dashboard_and_the_rules_finds_data_in_a_mesh_in_use", live::every_query_finds_data),
            prometheus::server().is_some(),
        ),
    ];
    for (test, there) in programs {
        if there {
            tests.push(test);
        } else {
            missing.push(format!("{} (skipped: prometheus is not installed)", test.0));
        }
    }
    testing::main_with_skipped(&tests, &missing);
}
