//! Network configurations: which one is in force, and our entry in its list of plugins. Pure.
//!
//! Editing changes no byte but those of our own entry: what other plugins wrote, order and spelling, stays as it is, and
//! taking the entry out again gives the file that was there before.
use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use super::PLUGIN;
use super::protocol::VERSIONS;

/// What container runtimes read from their folder.
const LIST: &str = "conflist";
const SINGLE: [&str; 2] = ["conf", "json"];

/// A configuration of one plugin that we have made a list of is kept beside under this ending, which nobody reads.
pub(super) const SAVED: &str = ".weft-saved";

/// Why an entry cannot be added to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unusable {
    /// No runtime could use the file either: another one is in force.
    Broken(String),
    /// The runtime uses it, but a plugin cannot be chained in it.
    Unchainable(String),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(why) | Self::Unchainable(why) => f.write_str(why),
        }
    }
}

/// Of the files `names`, those that are network configurations, in the order in which runtimes take the first.
pub(super) fn configurations<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found: Vec<&str> = names.into_iter().filter(|name| is_list(name) || is_single(name)).collect();
    found.sort_unstable();
    found
}

/// Whether `name` is that of a configuration with a list of plugins.
pub(super) fn is_list(name: &str) -> bool {
    ending(name) == LIST
}

/// Whether `name` is that of a configuration of one plugin.
pub(super) fn is_single(name: &str) -> bool {
    SINGLE.contains(&ending(name))
}

fn ending(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, ending)| ending)
}

/// The name under which the list made of the configuration `name` takes its place.
pub(super) fn list_name(name: &str) -> String {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
    format!("{stem}.{LIST}")
}

/// `text`, a list, with `entry` as its last plugin and nowhere else; none if that is so already.
pub(super) fn insert(text: &str, entry: &str) -> Result<Option<String>, Unusable> {
    let list = List::parse(text)?;
    list.chainable()?;
    let same = |ours: &str| serde_json::from_str::<Value>(ours).ok() == serde_json::from_str(entry).ok();
    match list.ours().as_slice() {
        [only] if *only + 1 == list.plugins.len() && same(&text[list.plugins[*only].clone()]) => return Ok(None),
        [] => {}
        _ => {
            let without = list.without(text);
            return insert(&without, entry).map(|inserted| inserted.or(Some(without)));
        }
    }
    let Some(last) = list.plugins.last() else { return Err(Unusable::Broken("its list of plugins is empty".into())) };
    // Set out as the last one is.
    let before = &text[..last.start];
    let space = &before[before.trim_end().len()..];
    Ok(Some(format!("{},{space}{entry}{}", &text[..last.end], &text[last.end..])))
}

/// `text`, a list, without our entry; none if it has none.
pub(super) fn remove(text: &str) -> Result<Option<String>, Unusable> {
    let list = List::parse(text)?;
    Ok((!list.ours().is_empty()).then(|| list.without(text)))
}

/// The list that the configuration of one plugin, `text`, is the same as, with `entry` behind it.
pub(super) fn convert(text: &str, entry: &str) -> Result<String, Unusable> {
    let members = Members::parse(text)?;
    if members.string("type").is_none() {
        return Err(Unusable::Broken("it names no plugin: `type` is missing".into()));
    }
    let name = members.get("name").unwrap_or("\"\"");
    let version = members.get("cniVersion").unwrap_or("\"\"");
    let list = format!("{{\"cniVersion\": {version}, \"name\": {name}, \"plugins\": [\n{}\n]}}\n", text.trim());
    insert(&list, entry).map(|inserted| inserted.unwrap_or(list))
}

/// A list and where its plugins stand in the text.
struct List<'a> {
    members: Members<'a>,
    plugins: Vec<Range<usize>>,
    types: Vec<String>,
}

impl<'a> List<'a> {
    fn parse(text: &'a str) -> Result<Self, Unusable> {
        let broken = |why: &str| Unusable::Broken(why.to_owned());
        let members = Members::parse(text)?;
        if members.string("name").is_none_or(|name| name.is_empty()) {
            return Err(broken("it has no `name`"));
        }
        let plugins = members.get("plugins").ok_or_else(|| broken("it has no list `plugins`"))?;
        let plugins: Vec<&RawValue> =
            serde_json::from_str(plugins).map_err(|fault| broken(&format!("`plugins` is not a list: {fault}")))?;
        if plugins.is_empty() {
            return Err(broken("its list of plugins is empty"));
        }
        let types = plugins.iter().map(|plugin| {
            let kind = Members::parse(plugin.get()).ok().and_then(|members| members.string("type"));
            kind.filter(|kind| !kind.is_empty()).ok_or_else(|| broken("one of its plugins has no `type`"))
        });
        let types = types.collect::<Result<_, _>>()?;
        // The values are slices of the text.
        let place = |part: &str| {
            let start = part.as_ptr().addr() - text.as_ptr().addr();
            start..start + part.len()
        };
        let plugins = plugins.iter().map(|plugin| place(plugin.get())).collect();
        Ok(Self { members, plugins, types })
    }

    /// Whether our plugin would understand what this list's runtime asks of it.
    fn chainable(&self) -> Result<(), Unusable> {
        let several = self.members.get("cniVersions").and_then(|list| serde_json::from_str::<Vec<String>>(list).ok());
        let mut versions = several.unwrap_or_default();
        versions.extend(self.members.string("cniVersion"));
        // Of several versions the runtime takes the highest.
        let highest = versions.into_iter().max_by(|a, b| compare_versions(a, b)).unwrap_or_default();
        if VERSIONS.contains(&highest.as_str()) {
            return Ok(());
        }
        Err(Unusable::Unchainable(format!(
            "its cniVersion is \"{highest}\", in which weft-cni cannot be chained; write one of {}",
            VERSIONS.join(", ")
        )))
    }

    fn ours(&self) -> Vec<usize> {
        self.types.iter().enumerate().filter(|(_, kind)| *kind == PLUGIN).map(|(index, _)| index).collect()
    }

    /// `text` without our entries, each with the comma that joins it to its neighbour.
    fn without(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for index in self.ours().into_iter().rev() {
            let ours = &self.plugins[index];
            let others_before = self.types[..index].iter().any(|kind| kind != PLUGIN);
            match (others_before, self.plugins.get(index + 1)) {
                (false, Some(next)) => text.replace_range(ours.start..next.start, ""),
                (false, None) => text.replace_range(ours.clone(), ""),
                (true, _) => text.replace_range(self.plugins[index - 1].end..ours.end, ""),
            }
        }
        text
    }
}

/// Numbers between dots, in order.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let numbers = |version: &str| version.split('.').map(|part| part.parse::<u64>().unwrap_or(0)).collect::<Vec<_>>();
    numbers(a).cmp(&numbers(b))
}

/// The members of a JSON object, in order, their values as they are written.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    fn parse(text: &'a str) -> Result<Self, Unusable> {
        serde_json::from_str(text).map_err(|fault| Unusable::Broken(format!("it cannot be read: {fault}")))
    }

    /// The value of `name` as it is written; of several the last, which is the one that runtimes take.
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().rev().find(|(member, _)| member == name).map(|(_, value)| value.get())
    }

    fn string(&self, name: &str) -> Option<String> {
        serde_json::from_str(self.get(name)?).ok()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"{"type":"weft-cni","socket":"/run/weft/cni.sock"}"#;
    const BRIDGE: &str = r#"{"cniVersion":"0.4.0","name":"one","plugins":[
 {"type":"bridge","ipam":{"ranges":[[{"subnet":"10.97.0.0/24"}]],"big":12345678901234567890.50}},
 {"type":"portmap","capabilities":{"portMappings":true}}],
 "zebra": 1,   "aardvark":"é\u00e9"}
"#;

    /// What stands between `[` and `]` of `plugins`, by type.
    fn chain(text: &str) -> Vec<String> {
        List::parse(text).unwrap_or_else(|why| panic!("{why}: {text}")).types
    }

    #[test]
    fn the_entry_goes_last_and_comes_out_again_without_a_trace() {
        let pretty = "{\n  \"name\": \"k8s\",\n  \"cniVersion\": \"1.0.0\",\n  \"plugins\": [\n    {\n      \"type\": \"calico\"\n    }\n  ]\n}\n";
        let compact = r#"{"cniVersions":["0.4.0","1.1.0"],"name":"n","plugins":[{"type":"ptp"}]}"#;
        for text in [BRIDGE, pretty, compact] {
            let inserted = insert(text, ENTRY).expect("usable").expect("changed");
            assert_eq!(chain(&inserted).last().map(String::as_str), Some(PLUGIN), "{inserted}");
            assert_eq!(insert(&inserted, ENTRY), Ok(None), "again changes nothing");
            assert_eq!(remove(&inserted), Ok(Some(text.to_owned())), "byte for byte");
            assert_eq!(remove(text), Ok(None));
        }
    }

    #[test]
    fn only_the_entry_is_added() {
        let inserted = insert(BRIDGE, ENTRY).expect("usable").expect("changed");
        assert_eq!(inserted.replacen(&format!(",\n {ENTRY}"), "", 1), BRIDGE);
    }

    #[test]
    fn an_entry_that_is_old_or_misplaced_is_set_right() {
        let old = r#"{"type":"weft-cni","socket":"/old"}"#;
        let same = r#"{ "socket":"/run/weft/cni.sock", "type":"weft-cni" }"#;
        for (plugins, expected, changed) in [
            (vec![r#"{"type":"ptp"}"#, old], vec!["ptp", PLUGIN], true),
            (vec![ENTRY, r#"{"type":"ptp"}"#], vec!["ptp", PLUGIN], true),
            (vec![r#"{"type":"ptp"}"#, ENTRY, r#"{"type":"portmap"}"#], vec!["ptp", "portmap", PLUGIN], true),
            (vec![r#"{"type":"ptp"}"#, ENTRY, old], vec!["ptp", PLUGIN], true),
            (vec![old, ENTRY, r#"{"type":"ptp"}"#, old, ENTRY], vec!["ptp", PLUGIN], true),
            (vec![r#"{"type":"ptp"}"#, same], vec!["ptp", PLUGIN], false),
        ] {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[ {} ]}}"#, plugins.join(" , "));
            let inserted = insert(&text, ENTRY).expect("usable");
            assert_eq!(inserted.is_some(), changed, "{text}");
            let inserted = inserted.unwrap_or(text);
            assert_eq!(chain(&inserted), expected, "{inserted}");
            assert!(!inserted.contains("/old"), "{inserted}");
        }
    }

    #[test]
    fn what_no_runtime_could_use_is_broken_and_what_cannot_be_chained_says_so() {
        for (text, hint, broken) in [
            ("", "cannot be read", true),
            ("{\"name\":\"n\",", "cannot be read", true),
            ("[]", "cannot be read", true),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"ptp"}]}"#, "no `name`", true),
            (r#"{"cniVersion":"1.0.0","name":"","plugins":[{"type":"ptp"}]}"#, "no `name`", true),
            (r#"{"cniVersion":"1.0.0","name":"n"}"#, "no list", true),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "empty", true),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#, "not a list", true),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, "no `type`", true),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":["ptp"]}"#, "no `type`", true),
            (r#"{"cniVersion":"0.2.0","name":"n","plugins":[{"type":"ptp"}]}"#, "0.3.1", false),
            (r#"{"name":"n","plugins":[{"type":"ptp"}]}"#, "0.3.1", false),
            (r#"{"cniVersions":["1.1.0","2.0.0"],"name":"n","plugins":[{"type":"ptp"}]}"#, "\"2.0.0\"", false),
        ] {
            let why = insert(text, ENTRY).expect_err(text);
            assert!(why.to_string().contains(hint), "{text}: {why}");
            assert_eq!(matches!(why, Unusable::Broken(_)), broken, "{text}: {why}");
        }
    }

    #[test]
    fn a_configuration_of_one_plugin_becomes_the_same_list() {
        let flannel = "{\n  \"cniVersion\": \"0.3.1\",\n  \"name\": \"cbr0\",\n  \"type\": \"flannel\",\n  \"delegate\": {\"isDefaultGateway\": true}\n}\n";
        let list = convert(flannel, ENTRY).expect("usable");
        assert_eq!(chain(&list), ["flannel", PLUGIN]);
        assert!(list.contains(flannel.trim()), "as it was: {list}");
        let value: Value = serde_json::from_str(&list).expect("JSON");
        assert_eq!((&value["cniVersion"], &value["name"]), (&Value::from("0.3.1"), &Value::from("cbr0")));
        assert_eq!(insert(&list, ENTRY), Ok(None));
        for (text, hint) in [
            (r#"{"cniVersion":"0.3.1","name":"n"}"#, "`type` is missing"),
            (r#"{"cniVersion":"0.3.1","type":"ptp"}"#, "no `name`"),
            (r#"{"cniVersion":"0.1.0","name":"n","type":"ptp"}"#, "0.3.1"),
            (r#"{"cniVersion":"0.3.1","name":"n","plugins":[{"type":"ptp"}]}"#, "`type` is missing"),
        ] {
            let why = convert(text, ENTRY).expect_err(text).to_string();
            assert!(why.contains(hint), "{text}: {why}");
        }
    }

    #[test]
    fn runtimes_take_the_first_name_with_one_of_their_endings() {
        let names = [
            "README",
            "99-loopback.conf",
            "10-calico.conflist",
            ".10-calico.conflist.weft-tmp",
            "10-calico.conflist.bak",
            "05-cilium.conf.weft-saved",
            "05-x.json",
            "Z.conflist",
            "calico-kubeconfig",
            "conf",
        ];
        assert_eq!(configurations(names), ["05-x.json", "10-calico.conflist", "99-loopback.conf", "Z.conflist"]);
        assert_eq!(list_name("05-x.json"), "05-x.conflist");
    }
}
