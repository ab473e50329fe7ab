use super::*;

const GREET: &str = r#"name = "greet"
description = "Greets somebody."
command = ["cat"]
"#;

fn refused(text: &str) -> (Option<usize>, String) {
    let refused = read("greet", text).unwrap_err();
    assert_eq!(refused.file, "greet.toml");
    (refused.line, refused.reason)
}

#[test]
fn a_file_with_everything_is_a_tool_with_everything() {
    let text = r#"
        name = "greet"
        description = "Greets somebody."
        command = ["python3", "-c", "print()"]
        image = "sha256:0123"
        effect = "reads_workspace"
        approval = "always"
        workspace = "read"
        reads = ["/opt/greetings"]
        result = '{"type": "object", "required": ["text"]}'
        [parameters]
        type = "object"
        required = ["name"]
        properties.name.type = "string"
        [environment]
        LANGUAGE = "eo"
        [limits]
        timeout_s = 5
        output_kib = 16
    "#;
    let Manifest { tool, program, uses } = read("greet", text).unwrap();
    assert_eq!((tool.effect, tool.approval, uses), (SideEffect::ReadsWorkspace, Approval::Always, Uses::Read));
    assert_eq!(tool.parameters["properties"]["name"]["type"], "string");
    assert_eq!(tool.result.unwrap()["required"][0], "text");
    let expected = Program {
        command: vec!["python3".into(), "-c".into(), "print()".into()],
        image: Some("sha256:0123".into()),
        reads: vec!["/opt/greetings".into()],
        environment: [("LANGUAGE".into(), "eo".into())].into(),
        quota: Quota { timeout_s: Some(5), output_kib: Some(16), ..Quota::default() },
    };
    assert_eq!(program, expected);
}

#[test]
fn what_an_author_leaves_out_is_the_careful_choice() {
    let Manifest { tool, program, uses } = read("greet", GREET).unwrap();
    assert_eq!((tool.effect, uses), (SideEffect::ActsElsewhere, Uses::None), "nobody knows what it does");
    assert_eq!(tool.parameters["additionalProperties"], false, "it takes nothing");
    assert_eq!(program.quota, Quota::default());
    let writes = read("greet", &format!("{GREET}workspace = \"write\"\n")).unwrap();
    assert_eq!(writes.tool.effect, SideEffect::ChangesWorkspace);
}

#[test]
fn a_wrong_file_is_refused_with_its_line_and_what_would_be_right() {
    for (more, line, reason) in [
        ("comand = []", 4, "unknown field `comand`"),
        ("effect = \"acts_elswhere\"", 4, "unknown variant `acts_elswhere`"),
        ("effect = \"reaches_network\"", 4, "no box has a network"),
        ("workspace = \"write\"\neffect = \"computes\"", 5, "needs workspace = \"none\""),
        ("effect = \"reads_workspace\"", 4, "needs workspace = \"read\""),
        ("parameters = \"{\"", 4, "`parameters` is no JSON: "),
        ("parameters = 3", 4, "`parameters` is a integer, expected a table"),
        ("\n[parameters]\ntype = \"string\"", 5, "`parameters` is no schema of an object"),
        ("[parameters]\ntype = \"object\"\nproperties.at.default = 2020-01-01", 4, "holds a date"),
        ("[limits]\nmemory_mib = 1", 5, "`limits.memory_mib` is 1, must be 16 to 65536"),
        ("[limits]\nseconds = 1", 5, "unknown field `seconds`"),
        ("[environment]\n\"A=B\" = \"\"", 4, "`environment` has no variable that could be called \"A=B\""),
        ("image = ", 4, ""),
    ] {
        let (at, why) = refused(&format!("{GREET}{more}\n"));
        assert_eq!(at, Some(line), "{more}: {why}");
        assert!(why.contains(reason), "{more}: {why}");
    }
    let (line, reason) = refused("name = \"other\"\ndescription = \"x\"\ncommand = [\"cat\"]\n");
    assert_eq!(
        (line, reason.as_str()),
        (Some(1), "`name` is \"other\": call the file other.toml, so that each name has one file")
    );
    let (line, reason) = refused("name = \"greet\"\ndescription = \"x\"\ncommand = []\n");
    assert_eq!((line, reason.starts_with("`command` names no program")), (Some(3), true), "{reason}");
    let (_, reason) = refused("name = \"greet\"\ncommand = [\"cat\"]\n");
    assert_eq!(reason, "missing field `description`");
    let name = read("Grüße", "name = \"Grüße\"\ndescription = \"x\"\ncommand = [\"cat\"]\n").unwrap_err();
    assert!(name.reason.starts_with("`name` must have 1 to 64 lower-case letters"), "{}", name.reason);
}
