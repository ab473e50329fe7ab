//! Every block format against the decoding of the `gguf` package (`tests/reference/make_reference.py blocks`).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Sample {
    inputs: usize,
    bytes: String,
    values: Vec<f32>,
}

#[test]
fn blocks_of_every_kind_are_decoded_as_gguf_decodes_them() {
    let samples: BTreeMap<String, Sample> =
        serde_json::from_str(include_str!("../../../tests/reference/blocks.json")).unwrap();
    let kinds = [
        ("Q4_0", GgmlDType::Q4_0, true),
        ("Q4_1", GgmlDType::Q4_1, true),
        ("Q5_0", GgmlDType::Q5_0, true),
        ("Q5_1", GgmlDType::Q5_1, true),
        ("Q8_0", GgmlDType::Q8_0, true),
        // A product of two scales is rounded once more.
        ("Q4_K", GgmlDType::Q4K, false),
        ("Q5_K", GgmlDType::Q5K, false),
        ("Q6_K", GgmlDType::Q6K, false),
    ];
    assert_eq!(samples.len(), kinds.len());
    for (name, kind, exact) in kinds {
        let Sample { inputs, bytes, values } = &samples[name];
        let bytes: Vec<u8> =
            (0..bytes.len()).step_by(2).map(|at| u8::from_str_radix(&bytes[at..at + 2], 16).unwrap()).collect();
        let unpacked = unpack(kind, &bytes, *inputs).expect(name);
        let floats = unpacked.floats();
        assert_eq!((floats.len(), unpacked.inputs), (values.len(), *inputs), "{name}");
        if exact {
            assert_eq!(&floats, values, "{name}");
        }
        let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        let worst = floats.iter().zip(values).fold(0.0_f32, |worst, (ours, theirs)| worst.max((ours - theirs).abs()));
        assert!(worst <= 1e-6 * largest, "{name}: off by {worst} of {largest}");
    }
}
