//! What is compiled ahead of time, against its sources.

use std::fs;

use serde_json::Value;
use sha2::{Digest, Sha256};

#[test]
fn shipped_machine_code_is_of_the_sources_beside_it() {
    let (kernels, _) = crate::emulated::folders();
    let folder = kernels.parent().unwrap();
    let read = |name: &str| fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let hash = |bytes: &[u8]| Value::from(hex::encode(Sha256::digest(bytes)));
    let manifest: Value = serde_json::from_slice(&read("cubins/manifest.json")).unwrap();
    let mut sources: Vec<String> = fs::read_dir(folder.join("kernels"))
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".cu")?.to_owned()))
        .collect();
    sources.sort();
    let listed: Vec<&String> = manifest["sources"].as_object().unwrap().keys().collect();
    assert_eq!(listed, sources.iter().collect::<Vec<_>>(), "run inference-worker/cubins");
    for name in &sources {
        let text = [read("kernels/device.cuh"), b"\n".to_vec(), read(&format!("kernels/{name}.cu"))].concat();
        let kept = &manifest["sources"][name];
        assert_eq!(kept["source"], hash(&text), "{name}.cu has changed: run inference-worker/cubins");
        assert_eq!(kept["cubin"], hash(&read(&format!("cubins/{name}.cubin"))), "{name}.cubin is another");
    }
}
