use std::path::PathBuf;

use super::*;
use crate::cuda::need::{GpuNeed, GpuNeeds};

const MIB: u64 = 1 << 20;

/// A worker with room for 100 MiB that knows these models, of so many MiB each.
fn worker(models: &[(&str, u64)]) -> Registry {
    let mut registry = Registry::new("w".into(), Plan { max_bytes: 100 * MIB, cache_bytes_max: 10 * MIB });
    registry.know(&found(models));
    registry
}

fn found(models: &[(&str, u64)]) -> BTreeMap<String, Found> {
    let found = |(name, mib): &(&str, u64)| {
        let need = Need { weights_bytes: mib * MIB, window: 512, ..Need::default() };
        ((*name).to_owned(), Found { path: PathBuf::from(name), need: Ok(need) })
    };
    models.iter().map(found).collect()
}

fn load(model: &str) -> Change {
    Change::Load { model: model.into() }
}

fn unload(model: &str) -> Change {
    Change::Unload { model: model.into(), force: false }
}

fn switch(from: &str, to: &str) -> Change {
    Change::Switch { from: from.into(), to: to.into(), force: false }
}

fn drain(model: &str) -> Act {
    Act::Drain { model: model.into(), force: false }
}

/// Loads a model of so many MiB to the end.
fn loaded(registry: &mut Registry, model: &str, mib: u64) {
    let (_, acts) = registry.ask(&load(model), 1).expect("it fits");
    assert_eq!(acts, [Act::Load(model.into())]);
    assert_eq!(registry.loaded(model, &Ok((mib * MIB, 512)), 2), []);
}

fn state(registry: &Registry, model: &str) -> ModelState {
    registry.state(0).models.into_iter().find(|known| known.name == model).expect("known").state
}

fn ended(registry: &Registry, id: &str) -> OperationState {
    registry.state(0).operations.into_iter().find(|operation| operation.id == id).expect("told about").state
}

fn code(result: Result<(Operation, Vec<Act>), Refusal>) -> (String, String) {
    let refusal = result.expect_err("refused");
    (refusal.code, refusal.detail)
}

#[test]
fn a_model_is_loaded_once_however_often_it_is_asked_for() {
    let mut registry = worker(&[("a", 20)]);
    let (first, acts) = registry.ask(&load("a"), 1).expect("it fits");
    assert_eq!((first.state.clone(), acts), (OperationState::Running, vec![Act::Load("a".into())]));
    assert_eq!(registry.ask(&load("a"), 2), Ok((first.clone(), vec![])), "the same operation");
    registry.progress("a", 0.5);
    assert_eq!((state(&registry, "a"), registry.offered()), (ModelState::Loading { progress: 0.5 }, vec![]));
    assert_eq!(registry.loaded("a", &Ok((21 * MIB, 256)), 3), []);
    assert_eq!((state(&registry, "a"), ended(&registry, &first.id)), (ModelState::Ready, OperationState::Done));
    let (again, acts) = registry.ask(&load("a"), 4).expect("it is there");
    assert_eq!((again.state, again.ended_at, acts), (OperationState::Done, Some(4), vec![]));
    assert_eq!(registry.offered()[0].window, 256);
    assert_eq!(registry.taken(), 31 * MIB, "what it takes, not what its files said");
}

#[test]
fn what_cannot_be_loaded_says_why_and_changes_nothing() {
    let mut registry = worker(&[("a", 20), ("b", 65), ("Twin.1", 1), ("twin_1", 1)]);
    loaded(&mut registry, "a", 20);
    let (unknown, detail) = code(registry.ask(&load("../etc"), 1));
    assert_eq!(unknown, "unknown_model");
    assert!(detail.contains("there are: Twin.1, a, b, twin_1"), "{detail}");
    let (full, detail) = code(registry.ask(&load("b"), 1));
    assert_eq!(full, "no_room");
    for part in ["b needs 75.0 MiB", "70.0 MiB of 100.0 MiB are free", "a takes 30.0 MiB", "models unload"] {
        assert!(detail.contains(part), "{part:?} is missing in {detail}");
    }
    assert_eq!(state(&registry, "b"), ModelState::Known);
    loaded(&mut registry, "Twin.1", 1);
    assert_eq!(code(registry.ask(&load("twin_1"), 1)).0, "name_taken");
    let (id, _) = registry.ask(&unload("Twin.1"), 1).map(|(o, acts)| (o.id, acts)).expect("loaded");
    registry.unloaded("Twin.1", 2);
    assert_eq!(ended(&registry, &id), OperationState::Done);
    assert!(registry.ask(&load("twin_1"), 1).is_ok());
}

#[test]
fn a_broken_model_fails_its_operations_and_may_be_tried_again() {
    let mut registry = worker(&[("a", 20), ("bad", 1)]);
    loaded(&mut registry, "a", 20);
    let (one, _) = registry.ask(&load("bad"), 1).expect("its headers look well");
    let (two, acts) = registry.ask(&switch("a", "bad"), 1).expect("it fits");
    assert_eq!(acts, [], "it is being read already");
    assert_eq!(registry.loaded("bad", &Err("use x: malformed".into()), 2), []);
    let failed = OperationState::Failed { reason: "use x: malformed".into() };
    assert_eq!([ended(&registry, &one.id), ended(&registry, &two.id)], [failed.clone(), failed]);
    assert_eq!(state(&registry, "a"), ModelState::Ready, "the other serves on");
    assert_eq!(registry.taken(), 30 * MIB, "it takes nothing");
    assert_eq!(registry.ask(&load("bad"), 3).expect("again").1, [Act::Load("bad".into())]);
}

#[test]
fn a_switch_loads_then_drains_then_ends() {
    let mut registry = worker(&[("a", 20), ("b", 20)]);
    loaded(&mut registry, "a", 20);
    let (operation, acts) = registry.ask(&switch("a", "b"), 1).expect("both fit");
    assert_eq!((acts, state(&registry, "a")), (vec![Act::Load("b".into())], ModelState::Ready));
    assert_eq!(registry.loaded("b", &Ok((20 * MIB, 512)), 2), [drain("a")]);
    assert_eq!(registry.offered().iter().map(|m| m.name.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(ended(&registry, &operation.id), OperationState::Running);
    assert_eq!(registry.unloaded("a", 3), []);
    assert_eq!((ended(&registry, &operation.id), state(&registry, "a")), (OperationState::Done, ModelState::Known));
    // Back to one that is there: it only drains.
    loaded(&mut registry, "a", 20);
    assert_eq!(registry.ask(&switch("b", "a"), 4).expect("both are there").1, [drain("b")]);
}

#[test]
fn a_switch_that_cannot_be_is_refused_and_begins_nothing() {
    let mut registry = worker(&[("a", 50), ("b", 40)]);
    assert_eq!(code(registry.ask(&switch("a", "b"), 1)).0, "not_loaded");
    assert_eq!(code(registry.ask(&switch("a", "a"), 1)).0, "same_model");
    loaded(&mut registry, "a", 50);
    let (full, detail) = code(registry.ask(&switch("a", "b"), 1));
    assert_eq!(full, "no_room");
    assert!(detail.contains("room for both"), "{detail}");
    assert_eq!(code(registry.ask(&switch("a", "c"), 1)).0, "unknown_model");
    assert_eq!((state(&registry, "a"), state(&registry, "b")), (ModelState::Ready, ModelState::Known));
}

#[test]
fn a_model_wanted_again_while_it_goes_comes_back_when_it_is_gone() {
    let mut registry = worker(&[("a", 20)]);
    loaded(&mut registry, "a", 20);
    let (going, acts) = registry.ask(&unload("a"), 1).expect("loaded");
    assert_eq!(acts, [drain("a")]);
    assert_eq!(registry.ask(&unload("a"), 1), Ok((going.clone(), vec![])), "it goes already");
    let (coming, acts) = registry.ask(&load("a"), 2).expect("it will come");
    assert_eq!((coming.state.clone(), acts), (OperationState::Running, vec![]));
    assert_eq!(registry.unloaded("a", 3), [Act::Load("a".into())]);
    assert_eq!(
        [ended(&registry, &going.id), ended(&registry, &coming.id)],
        [OperationState::Done, OperationState::Running]
    );
    registry.loaded("a", &Ok((20 * MIB, 512)), 4);
    assert_eq!(ended(&registry, &coming.id), OperationState::Done);
}

#[test]
fn a_second_word_can_hurry_a_model_that_goes() {
    let mut registry = worker(&[("a", 20)]);
    loaded(&mut registry, "a", 20);
    registry.ask(&unload("a"), 1).expect("loaded");
    let force = Change::Unload { model: "a".into(), force: true };
    let (_, acts) = registry.ask(&force, 2).expect("it goes faster");
    assert_eq!(acts, [Act::Drain { model: "a".into(), force: true }]);
    registry.unloaded("a", 3);
    assert!(registry.state(0).operations.iter().all(|operation| operation.state == OperationState::Done));
}

#[test]
fn what_cannot_be_unloaded_says_why() {
    let mut registry = worker(&[("a", 20), ("b", 20)]);
    registry.fix(Model { name: "minilm".into(), kind: "embedding".into(), window: 9 });
    assert_eq!(code(registry.ask(&unload("minilm"), 1)).0, "fixed_model");
    assert_eq!(code(registry.ask(&unload("c"), 1)).0, "unknown_model");
    loaded(&mut registry, "a", 20);
    let (idle, detail) = code(registry.ask(&unload("b"), 1));
    assert_eq!((idle.as_str(), detail.as_str()), ("not_loaded", "b is not loaded; loaded are: a, minilm"));
    registry.ask(&load("b"), 1).expect("it fits");
    assert_eq!(code(registry.ask(&unload("b"), 1)).0, "model_busy");
}

#[test]
fn a_model_whose_files_go_is_known_as_long_as_it_is_held() {
    let mut registry = worker(&[("a", 20), ("b", 20)]);
    loaded(&mut registry, "a", 20);
    registry.know(&found(&[("new", 5)]));
    let known = |registry: &Registry| registry.state(0).models.into_iter().map(|m| m.name).collect::<Vec<_>>();
    assert_eq!(known(&registry), ["a", "new"]);
    registry.ask(&unload("a"), 1).expect("loaded");
    registry.unloaded("a", 2);
    registry.know(&found(&[("new", 5)]));
    assert_eq!(known(&registry), ["new"]);
}

#[test]
fn old_ends_are_forgotten_and_what_goes_on_is_not() {
    let mut registry = worker(&[("a", 20), ("b", 20)]);
    loaded(&mut registry, "a", 20);
    let (running, _) = registry.ask(&load("b"), 1).expect("it fits");
    for n in 0..40 {
        registry.ask(&load("a"), n).expect("it is there");
    }
    let operations = registry.state(0).operations;
    assert_eq!(operations.len(), ENDED_MAX + 1);
    assert!(operations.iter().any(|operation| operation.id == running.id));
}

#[test]
fn the_last_word_about_a_model_that_goes_counts() {
    let mut registry = worker(&[("a", 20)]);
    loaded(&mut registry, "a", 20);
    let gone = registry.ask(&unload("a"), 3).expect("it is loaded").0;
    let back = registry.ask(&load("a"), 4).expect("it comes back").0;
    let (again, acts) = registry.ask(&unload("a"), 5).expect("it goes after all");
    assert_eq!((again.id, acts), (gone.id.clone(), vec![]));
    assert!(matches!(ended(&registry, &back.id), OperationState::Failed { .. }), "nobody waits for it any more");
    assert_eq!(registry.unloaded("a", 6), []);
    assert_eq!((state(&registry, "a"), ended(&registry, &gone.id)), (ModelState::Known, OperationState::Done));
    // And it can be loaded again.
    assert_eq!(registry.ask(&load("a"), 7).expect("it fits").1, [Act::Load("a".into())]);
}

#[test]
fn a_hurry_does_not_leave_a_load_behind_that_never_ends() {
    let mut registry = worker(&[("a", 20), ("b", 20)]);
    loaded(&mut registry, "a", 20);
    loaded(&mut registry, "b", 20);
    registry.ask(&unload("a"), 3).expect("it is loaded");
    let back = registry.ask(&switch("b", "a"), 4).expect("it comes back").0;
    let hurry = Change::Unload { model: "a".into(), force: true };
    assert_eq!(registry.ask(&hurry, 5).expect("it goes").1, [Act::Drain { model: "a".into(), force: true }]);
    assert!(matches!(ended(&registry, &back.id), OperationState::Failed { .. }));
    assert_eq!(registry.unloaded("a", 6), []);
    assert!(registry.state(0).operations.iter().all(|operation| operation.state != OperationState::Running));
    assert_eq!(state(&registry, "b"), ModelState::Ready);
}

#[test]
fn the_name_of_a_model_from_elsewhere_is_taken() {
    let mut registry = worker(&[("l_arge", 20)]);
    registry.reserve("l.arge".into());
    let (code, detail) = code(registry.ask(&load("l_arge"), 1));
    assert_eq!(code, "name_taken");
    assert!(detail.contains("l.arge"), "{detail}");
}

/// A worker with one GPU of 1 GiB that knows a model of so many MiB; on the GPU it takes as much.
fn with_gpu(mib: u64) -> Registry {
    let mut registry = worker(&[]);
    let gpu = GpuNeed { weights_bytes: mib * MIB, working_bytes: 0, cache_bytes: 0 };
    let need = Need {
        weights_bytes: mib * MIB,
        reading_bytes: MIB,
        gpus: GpuNeeds::made_up(vec![Ok(gpu)]),
        ..Need::default()
    };
    registry.know(&BTreeMap::from([("a".to_owned(), Found { path: PathBuf::from("a"), need: Ok(need) })]));
    registry.know_rooms(vec![Room { id: 3, free_bytes: 1 << 30 }]);
    registry
}

#[test]
fn a_model_on_a_gpu_takes_none_of_the_memory_of_the_machine() {
    // Far more than the machine has for models.
    let mut registry = with_gpu(800);
    registry.ask(&load("a"), 1).expect("it fits the GPU");
    assert_eq!((registry.place("a"), registry.taken()), (Place::Gpus(vec![3]), MIB));
    assert_eq!(registry.loaded("a", &Ok((800 * MIB, 512)), 2), []);
    assert_eq!((state(&registry, "a"), registry.taken()), (ModelState::Ready, 0));
}

#[test]
fn a_model_that_its_gpu_refuses_is_read_for_the_cpus() {
    let mut registry = with_gpu(20);
    let (operation, _) = registry.ask(&load("a"), 1).expect("it fits the GPU");
    let refused = Err("the kernels cannot be built".to_owned());
    assert_eq!(registry.loaded("a", &refused, 2), [Act::Load("a".into())]);
    assert_eq!(registry.place("a"), Place::Cpu(Some("the kernels cannot be built".into())));
    assert_eq!(registry.loaded("a", &Ok((20 * MIB, 512)), 3), []);
    assert_eq!(ended(&registry, &operation.id), OperationState::Done);
    // Where the CPUs have no room either, both reasons are told.
    let mut registry = with_gpu(800);
    registry.ask(&load("a"), 1).expect("it fits the GPU");
    assert_eq!(registry.loaded("a", &refused, 2), []);
    let ModelState::Failed { reason } = state(&registry, "a") else { panic!("it failed") };
    assert!(reason.starts_with("the kernels cannot be built; on the CPUs: a needs 811.0 MiB"), "{reason}");
}

#[test]
fn a_model_whose_gpu_is_lost_comes_back_on_the_cpus_and_no_other_goes_there() {
    let mut registry = with_gpu(20);
    registry.ask(&load("a"), 1).expect("it fits the GPU");
    // What it takes there, wider than in its files, says nothing of the CPUs.
    registry.loaded("a", &Ok((1 << 40, 512)), 2);
    assert_eq!(registry.lost("a", "the GPU was lost", &[0]), [Act::Drain { model: "a".into(), force: true }]);
    assert_eq!(registry.unloaded("a", 3), [Act::Load("a".into())]);
    assert_eq!(registry.place("a"), Place::Cpu(Some("the GPU was lost".into())));
    registry.loaded("a", &Ok((20 * MIB, 512)), 4);
    // Loaded anew, it is not tried on a card that is lost.
    registry.ask(&unload("a"), 5).expect("it is there");
    registry.unloaded("a", 6);
    registry.ask(&load("a"), 7).expect("it fits");
    assert!(matches!(registry.place("a"), Place::Cpu(Some(why)) if why.contains("lost")));
}

#[test]
fn of_several_gpus_only_the_lost_one_gets_no_model_any_more() {
    let mut registry = with_gpu(20);
    let on = GpuNeed { weights_bytes: 600 * MIB, working_bytes: 0, cache_bytes: 0 };
    let need = Need {
        gpus: GpuNeeds::made_up(vec![Ok(GpuNeed { weights_bytes: 1_200 * MIB, ..on }), Ok(on)]),
        ..Need::default()
    };
    registry.know(&BTreeMap::from([("a".to_owned(), Found { path: PathBuf::from("a"), need: Ok(need) })]));
    registry.know_rooms([3, 5, 6].map(|id| Room { id, free_bytes: 1 << 30 }).into());
    registry.use_gpus(HowGpus { demanded: true, ..HowGpus::default() });
    let device = |registry: &Registry| registry.state(0).models[0].device.clone();
    assert_eq!(device(&registry), None, "it is not loaded");
    registry.ask(&load("a"), 1).expect("it fits two GPUs");
    assert_eq!(registry.place("a"), Place::Gpus(vec![3, 5]));
    assert_eq!(device(&registry).as_deref(), Some("gpus 3,5"));
    registry.loaded("a", &Ok((1_200 * MIB, 512)), 2);
    // The second rank's.
    registry.lost("a", "the GPU was lost", &[1]);
    registry.unloaded("a", 3);
    registry.ask(&load("a"), 4).expect("two are left");
    assert_eq!(registry.place("a"), Place::Gpus(vec![3, 6]));
    registry.loaded("a", &Ok((1_200 * MIB, 512)), 5);
    // Only the way between them: each is as good as before.
    registry.lost("a", "NCCL cannot sum", &[]);
    registry.unloaded("a", 6);
    registry.ask(&load("a"), 7).expect("two are left");
    assert_eq!(registry.place("a"), Place::Gpus(vec![3, 6]));
}

#[test]
fn what_is_being_read_for_several_gpus_counts_on_each() {
    let mut registry = with_gpu(20);
    let need = |mib| {
        let on = Ok(GpuNeed { weights_bytes: mib * MIB, working_bytes: 0, cache_bytes: 0 });
        let gpus = GpuNeeds::made_up(vec![Err("too large for one".to_owned()), on]);
        Ok(Need { gpus, ..Need::default() })
    };
    let found = |name: &str, mib| (name.to_owned(), Found { path: PathBuf::from(name), need: need(mib) });
    registry.know(&BTreeMap::from([found("a", 600), found("b", 500), found("c", 400)]));
    registry.know_rooms([3, 5].map(|id| Room { id, free_bytes: 1 << 30 }).into());
    registry.use_gpus(HowGpus { demanded: true, per_model: 2, apart: None });
    registry.ask(&load("a"), 1).expect("it fits");
    let (_, why) = code(registry.ask(&load("b"), 2));
    assert!(why.contains("on each of 2 GPUs it needs 500.0 MiB") && why.contains("424.0 MiB are free"), "{why}");
    registry.ask(&load("c"), 3).expect("it fits beside it");
}

#[test]
fn where_a_gpu_is_demanded_no_model_goes_on_the_cpus() {
    let mut registry = with_gpu(20);
    registry.use_gpus(HowGpus { demanded: true, ..HowGpus::default() });
    registry.ask(&load("a"), 1).expect("it fits the GPU");
    registry.loaded("a", &Ok((20 * MIB, 512)), 2);
    registry.lost("a", "the GPU was lost", &[0]);
    assert_eq!(registry.unloaded("a", 3), []);
    assert_eq!(state(&registry, "a"), ModelState::Failed { reason: "the GPU was lost".into() });
    let (which, why) = code(registry.ask(&load("a"), 4));
    assert_eq!(which, "no_room");
    assert!(why.contains("every GPU was lost"), "{why}");
    let mut registry = with_gpu(2_000);
    registry.use_gpus(HowGpus { demanded: true, ..HowGpus::default() });
    let (_, why) = code(registry.ask(&load("a"), 1));
    assert!(why.contains("1.0 GiB are free on GPU 3"), "{why}");
}
