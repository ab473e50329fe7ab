use super::*;
use crate::agents::builtin;

fn others() -> Vec<(Source, AgentType)> {
    builtin().into_iter().map(|agent| (Source::BuiltIn, agent)).collect()
}

fn manifest(name: &str, more: &str) -> String {
    format!("name = \"{name}\"\ndescription = \"Does things.\"\nsystem = \"Do things.\"\n{more}")
}

fn asks(name: &str, agents: &str) -> String {
    manifest(name, &format!("agents = [{agents}]\nmax_children = 2\nmax_depth = 2\n"))
}

fn files(files: &[(&str, String)]) -> BTreeMap<Stem, String> {
    files.iter().map(|(stem, text)| ((*stem).to_owned(), text.clone())).collect()
}

fn taken(admitted: &Admitted) -> Vec<&str> {
    admitted.agents.keys().map(String::as_str).collect()
}

fn admit_new(all: &[(&str, String)]) -> Admitted {
    admit(&files(all), &BTreeMap::new(), &others())
}

#[test]
fn a_whole_manifest_is_read_and_what_it_leaves_out_has_a_default() {
    let text = manifest(
        "reviewer",
        "models = [\"large\"]\ntools = [\"read_file\"]\nagents = [\"coder\"]\nmax_iterations = 5\nmax_children = 2\n\
         max_depth = 1\n[policy]\napprove = [\"read_file\"]\nsmall_model = \"tiny\"\nat_limit = \"ask\"\n\
         join = { quorum = 2 }\n",
    );
    let admitted = admit_new(&[("reviewer", text)]);
    assert_eq!(admitted.refused, BTreeMap::new());
    let agent = &admitted.agents["reviewer"];
    assert_eq!((agent.max_iterations, agent.max_tokens, agent.deadline_ms), (5, 200_000, 300_000));
    assert_eq!(agent.policy.small_model.as_deref(), Some("tiny"));
    assert_eq!(agent.policy.join, schemas::fact::Join::Quorum(2));
}

#[test]
fn a_wrong_file_is_refused_with_its_line_and_the_others_are_taken() {
    let cases = [
        (manifest("bad", "modles = []\n"), Some(4), "modles"),
        (manifest("bad", "max_iterations = 0\n"), Some(4), "must be 1 to 1000"),
        (manifest("bad", "[policy]\napprove = [\"rm\"]\n"), Some(5), "none of its tools"),
        (manifest("bad", "[policy]\nat_limit = \"wait\"\n"), Some(5), "wait"),
        (manifest("other", ""), Some(1), "call the file other.toml"),
        (manifest("bad", "tools = [\n"), Some(4), "unclosed"),
        (asks("bad", "\"nobody\""), Some(4), "names nobody, which is not registered"),
        (asks("bad", "\"bad\""), Some(4), "bad → bad"),
        ("name = \"bad\"\n".to_owned(), Some(1), "missing field"),
    ];
    for (text, line, said) in cases {
        let admitted = admit_new(&[("bad", text.clone()), ("good", manifest("good", ""))]);
        assert_eq!(taken(&admitted), ["good"], "{text}");
        let refused = &admitted.refused["bad"];
        assert_eq!(refused.file, "bad.toml");
        assert!(refused.reason.contains(said), "{text}\n{refused:?}");
        assert_eq!(refused.line, line, "{text}\n{refused:?}");
    }
}

#[test]
fn a_circle_through_what_is_built_in_is_the_fault_of_the_file() {
    let admitted = admit_new(&[("coder", asks("coder", "\"planner\"")), ("lead", asks("lead", "\"planner\""))]);
    assert_eq!(taken(&admitted), ["lead"]);
    assert!(admitted.refused["coder"].reason.contains("coder → planner → coder"), "{:?}", admitted.refused);
}

#[test]
fn who_asks_a_refused_one_is_refused_with_it_and_neither_is_forgotten() {
    let all = [("a", asks("a", "\"b\"")), ("b", asks("b", "\"nobody\""))];
    let admitted = admit_new(&all);
    assert_eq!((taken(&admitted).len(), admitted.refused.len(), admitted.unsettled), (0, 2, true));
    let nobody = AgentType { name: "nobody".into(), agents: vec![], ..builtin().remove(0) };
    let known: Vec<_> = others().into_iter().chain([(Source::Registered, nobody)]).collect();
    assert_eq!(taken(&admit(&files(&all), &BTreeMap::new(), &known)), ["a", "b"]);
}

#[test]
fn what_was_taken_before_stays_until_the_file_is_right_again() {
    let first = admit_new(&[("a", manifest("a", "max_iterations = 3\n"))]);
    for broken in ["max_iterations = 0\n", "agents = [\"nobody\"]\nmax_children = 1\nmax_depth = 1\n"] {
        let second = admit(&files(&[("a", manifest("a", broken))]), &first.agents, &others());
        assert_eq!(second.agents["a"].max_iterations, 3);
        assert_eq!(second.refused.len(), 1);
    }
    let gone = admit(&BTreeMap::new(), &first.agents, &others());
    assert_eq!(gone, Admitted::default());
}

#[test]
fn the_example_of_the_readme_is_taken() {
    let readme = include_str!("../../../../README.md");
    let example = readme.lines().skip_while(|line| !line.contains("reviewer.toml")).take_while(|line| !line.is_empty());
    let text: Vec<&str> = example.collect();
    let admitted = admit_new(&[("reviewer", text.join("\n"))]);
    assert_eq!((taken(&admitted), &admitted.refused), (vec!["reviewer"], &BTreeMap::new()));
}
