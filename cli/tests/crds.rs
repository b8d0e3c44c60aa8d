//! The CustomResourceDefinitions in the chart are those of the types.
use std::fs;
use std::path::Path;
use std::process::Command;

const REMEDY: &str = "write them anew: `cargo run -p weft -- crds --directory charts/weft/files/crds`";

#[test]
fn the_chart_has_the_definitions_that_the_types_give() {
    let output = Command::new(env!("CARGO_BIN_EXE_weft")).arg("crds").output().expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).expect("YAML is text");

    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/weft/files/crds");
    let mut files: Vec<_> =
        fs::read_dir(directory).expect("the folder is there").map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    let kept: String =
        files.iter().map(|path| format!("---\n{}", fs::read_to_string(path).expect("a text file"))).collect();
    assert!(printed == kept, "charts/weft/files/crds is not what `weft crds` prints; {REMEDY}");
}
