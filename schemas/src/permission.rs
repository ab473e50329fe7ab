//! Who may say and hear what on the bus: one user of the NATS server for each role, with the least that it needs, and an
//! account of their own for plain clients.
//!
//! Written out as a server reads it, this is `deploy/nats/accounts.conf` ([`accounts`]); a test holds the file against it.
//! Everybody has an inbox of their own (`_INBOX_<user>`), so nobody hears what others are answered; and who answers
//! questions may write to the inboxes of those who may ask, and to no other. Two things no list can say: a fact's kind
//! stands inside the message, so who may append facts may append any (results count only for effects that were given to a
//! worker); and a server sends what is pulled wherever the puller names.

use std::fmt::Write;

use crate::ids::Partition;
use crate::stream::{self, submit_mapping};
use crate::subject;

/// A user of the NATS server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    /// Takes requests in and streams answers back.
    Gateway,
    /// Decides, and makes the streams.
    Orchestrator,
    /// Computes.
    InferenceWorker,
    /// Calls tools.
    ToolWorker,
    /// Reads code.
    AnalysisWorker,
    /// Reads the log and changes nothing: `vlinders replay`, `audit`, `executions`.
    Auditor,
}

/// What a user may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Permissions {
    /// Subjects it may publish to.
    pub publish: Vec<String>,
    /// Subjects it may subscribe to.
    pub subscribe: Vec<String>,
}

/// All facts.
const FACTS: &str = "vl.v1.log.*.*.fact";
/// All decisions.
const DECISIONS: &str = "vl.v1.log.*.*.decision";
/// What is stored, republished.
const SEEN: &str = "vl.v1.seen.>";
/// All token frames.
const TOKENS: &str = "vl.v1.tok.>";
/// Questions about executions, which orchestrators answer from the log or from tables.
const ABOUT_EXECUTIONS: [&str; 6] = [
    subject::RPC_EXECUTIONS,
    subject::RPC_TOOL_CALLS,
    subject::RPC_PERFORMANCE,
    subject::RPC_PROJECTION,
    subject::RPC_STATE,
    subject::RPC_VERIFY,
];
/// Questions for a sign of life.
const LIVENESS: &str = "vl.v1.ctl.worker.*";

impl User {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Gateway,
        Self::Orchestrator,
        Self::InferenceWorker,
        Self::ToolWorker,
        Self::AnalysisWorker,
        Self::Auditor,
    ];

    /// The role's name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Orchestrator => "orchestrator",
            Self::InferenceWorker => "inference-worker",
            Self::ToolWorker => "tool-worker",
            Self::AnalysisWorker => "analysis-worker",
            Self::Auditor => "auditor",
        }
    }

    /// First token of the subjects on which it is answered (`nats.inbox_prefix`).
    #[must_use]
    pub fn inbox(self) -> String {
        format!("_INBOX_{}", self.name())
    }

    /// Name of the variable that holds the public half of its key, in the server's configuration.
    #[must_use]
    pub fn key(self) -> String {
        format!("VL_{}", self.name().to_uppercase().replace('-', "_"))
    }

    /// What it may do.
    #[must_use]
    pub fn permissions(self) -> Permissions {
        let mut may = Permissions::default();
        may.say(["$JS.API.INFO", "$JS.API.STREAM.NAMES"]);
        may.hear([format!("{}.>", self.inbox())]);
        match self {
            Self::Gateway => may.gateway(),
            Self::Orchestrator => may.orchestrator(),
            Self::InferenceWorker => may.inference_worker(),
            Self::ToolWorker => may.tool_worker(),
            Self::AnalysisWorker => may.analysis_worker(),
            Self::Auditor => may.auditor(),
        }
        may.publish.sort();
        may.publish.dedup();
        may.subscribe.sort();
        may.subscribe.dedup();
        may
    }
}

impl Permissions {
    fn say(&mut self, subjects: impl IntoIterator<Item = impl Into<String>>) {
        self.publish.extend(subjects.into_iter().map(Into::into));
    }

    fn hear(&mut self, subjects: impl IntoIterator<Item = impl Into<String>>) {
        self.subscribe.extend(subjects.into_iter().map(Into::into));
    }

    fn gateway(&mut self) {
        self.say([FACTS, "vl.v1.ctl.cancel.*", "vl.v1.dlq.*.*"]);
        self.hear([TOKENS, SEEN]);
        self.read_log();
        self.read(stream::TOKENS);
        self.ask(&[
            subject::RPC_EMBED,
            subject::RPC_MODELS,
            subject::RPC_MODELS_CHANGE,
            subject::RPC_TOOLS,
            subject::RPC_WORKSPACE,
            subject::RPC_FORK,
            subject::RPC_INDEXES,
            subject::RPC_MEMORY,
        ]);
        self.ask(&ABOUT_EXECUTIONS);
        self.answer(&[subject::RPC_SUBMISSION], &[User::Orchestrator]);
        for bucket in [stream::BUCKET_CONFIG, stream::BUCKET_REQUESTS] {
            self.open_bucket(bucket);
            self.write_bucket(bucket);
        }
        // How full each queue is, what consumers lag behind, and what each worker holds: for admission, and for people.
        self.say(["$JS.API.STREAM.LIST", "$JS.API.STREAM.INFO.*", "$JS.API.CONSUMER.LIST.*", LIVENESS]);
        self.read(&format!("KV_{}", stream::BUCKET_WORKERS));
        self.read_objects();
        self.write_objects();
        // Dead letters are looked at, settled, and sent again where they came from.
        self.read(stream::DEAD_LETTERS);
        self.say([format!("$JS.API.STREAM.MSG.DELETE.{}", stream::DEAD_LETTERS)]);
        for queue in [stream::INFERENCE_JOBS, stream::TOOL_JOBS, stream::ANALYSIS_JOBS] {
            self.read(queue);
        }
        self.say(["vl.v1.job.>"]);
    }

    fn orchestrator(&mut self) {
        self.say([FACTS, DECISIONS, "vl.v1.job.>", "vl.v1.ctl.cancel.*", LIVENESS, "vl.v1.dlq.*.*"]);
        self.say([subject::REPLY_ALL]);
        self.hear([subject::CLAIM_ALL]);
        // It makes what is missing. Nobody deletes, purges or changes a stream.
        self.say(["$JS.API.STREAM.CREATE.*", "$JS.API.STREAM.INFO.*", "$JS.API.CONSUMER.CREATE.>"]);
        self.say(["$JS.API.CONSUMER.INFO.>"]);
        self.read_log();
        for partition in Partition::all() {
            // What they share by turns: deciding, and keeping tables.
            let log = subject::log_stream(partition);
            self.pull(&log, "*");
            // One that forgot how far it was is made anew.
            self.say([format!("$JS.API.CONSUMER.DELETE.{log}.orchestrator")]);
        }
        self.pull(stream::DEAD_LETTERS, "dead-letters");
        self.read(stream::DEAD_LETTERS);
        self.say([format!("$JS.API.STREAM.MSG.DELETE.{}", stream::DEAD_LETTERS)]);
        for queue in [stream::INFERENCE_JOBS, stream::TOOL_JOBS, stream::ANALYSIS_JOBS] {
            self.read(queue);
            self.say([format!("$JS.API.CONSUMER.LIST.{queue}"), format!("$JS.API.STREAM.MSG.DELETE.{queue}")]);
        }
        for bucket in [stream::BUCKET_OPEN, stream::BUCKET_CONFIG] {
            self.open_bucket(bucket);
            self.write_bucket(bucket);
        }
        self.follow(&format!("KV_{}", stream::BUCKET_OPEN));
        self.read(&format!("KV_{}", stream::BUCKET_WORKERS));
        self.read_objects();
        self.write_objects();
        self.answer(&[subject::RPC_FORK], &[User::Gateway]);
        self.answer(&ABOUT_EXECUTIONS, &[User::Gateway]);
        self.ask(&[subject::RPC_SUBMISSION]);
    }

    fn inference_worker(&mut self) {
        self.worker(stream::INFERENCE_JOBS, "vl.v1.job.infer.>");
        self.say([TOKENS]);
        self.read(stream::TOKENS);
        // Whether an execution that a model serves will ask it again stands in the log.
        self.read_log();
        for bucket in [stream::BUCKET_RESULTS, stream::BUCKET_LEASES] {
            self.open_bucket(bucket);
            self.write_bucket(bucket);
        }
        let changes = format!("{}.*", subject::RPC_MODELS_CHANGE);
        let asked = [subject::RPC_EMBED, subject::RPC_MODELS, subject::RPC_MODELS_CHANGE, changes.as_str()];
        self.answer(&asked, &[User::Gateway, User::Orchestrator, User::AnalysisWorker, User::InferenceWorker]);
        self.ask(&[changes.as_str()]);
    }

    fn tool_worker(&mut self) {
        self.worker(stream::TOOL_JOBS, "vl.v1.job.tool.>");
        for bucket in [stream::BUCKET_TOOL_RESULTS, stream::BUCKET_TOOL_CALLS] {
            self.open_bucket(bucket);
            self.write_bucket(bucket);
        }
        self.write_objects();
        self.answer(&[subject::RPC_TOOLS, subject::RPC_WORKSPACE], &[User::Gateway, User::Orchestrator]);
        self.ask(&[subject::RPC_ANALYSIS, subject::RPC_SEARCH, subject::RPC_CODE, subject::RPC_MEMORY]);
    }

    fn analysis_worker(&mut self) {
        self.worker(stream::ANALYSIS_JOBS, "vl.v1.job.analysis.>");
        self.open_bucket(stream::BUCKET_CODE);
        self.write_bucket(stream::BUCKET_CODE);
        self.follow(&format!("KV_{}", stream::BUCKET_CODE));
        self.write_objects();
        let kept = format!("{}.*", subject::RPC_VECTORS);
        let asked = [
            subject::RPC_ANALYSIS,
            subject::RPC_SEARCH,
            subject::RPC_CODE,
            subject::RPC_INDEXES,
            subject::RPC_MEMORY,
            kept.as_str(),
        ];
        self.answer(&asked, &[User::Gateway, User::Orchestrator, User::ToolWorker, User::AnalysisWorker]);
        self.ask(&[subject::RPC_MODELS, subject::RPC_EMBED, kept.as_str()]);
    }

    fn auditor(&mut self) {
        self.read_log();
        self.read_objects();
        self.hear([SEEN]);
        self.say(Partition::all().map(|p| format!("$JS.API.STREAM.INFO.{}", subject::log_stream(p))));
    }

    /// What all workers do: take jobs of one queue, answer for themselves, append results.
    fn worker(&mut self, queue: &str, jobs: &str) {
        self.say([FACTS, "vl.v1.ctl.claim.*", "vl.v1.dlq.*.*"]);
        self.hear([subject::CANCEL_ALL, LIVENESS]);
        self.pull(queue, "*");
        self.read(queue);
        self.say([
            format!("$JS.API.STREAM.INFO.{queue}"),
            format!("$JS.API.CONSUMER.LIST.{queue}"),
            format!("$JS.API.CONSUMER.CREATE.{queue}.*.{jobs}"),
        ]);
        self.open_bucket(stream::BUCKET_WORKERS);
        self.write_bucket(stream::BUCKET_WORKERS);
        self.read_objects();
    }

    /// Reads single messages of a stream.
    fn read(&mut self, stream: &str) {
        self.say([format!("$JS.API.DIRECT.GET.{stream}"), format!("$JS.API.DIRECT.GET.{stream}.>")]);
    }

    fn read_log(&mut self) {
        Partition::all().for_each(|partition| self.read(&subject::log_stream(partition)));
    }

    /// Pulls a durable consumer and acknowledges; in both forms in which servers write the subject of an acknowledgement.
    fn pull(&mut self, stream: &str, consumer: &str) {
        self.say([
            format!("$JS.API.CONSUMER.INFO.{stream}.{consumer}"),
            format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
            format!("$JS.ACK.{stream}.{consumer}.>"),
            format!("$JS.ACK.*.*.{stream}.{consumer}.>"),
        ]);
    }

    /// Follows a stream by consumers that live as long as somebody reads them.
    fn follow(&mut self, stream: &str) {
        self.say([
            format!("$JS.API.CONSUMER.CREATE.{stream}"),
            format!("$JS.API.CONSUMER.CREATE.{stream}.>"),
            format!("$JS.API.CONSUMER.DELETE.{stream}.*"),
            format!("$JS.API.CONSUMER.INFO.{stream}.*"),
            format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.*"),
            format!("$JS.FC.{stream}.>"),
        ]);
    }

    fn open_bucket(&mut self, bucket: &str) {
        self.say([format!("$JS.API.STREAM.INFO.KV_{bucket}")]);
        self.read(&format!("KV_{bucket}"));
    }

    fn write_bucket(&mut self, bucket: &str) {
        self.say([format!("$KV.{bucket}.>")]);
    }

    fn read_objects(&mut self) {
        let store = format!("OBJ_{}", stream::BUCKET_OBJECTS);
        self.say([format!("$JS.API.STREAM.INFO.{store}")]);
        self.read(&store);
        self.follow(&store);
    }

    fn write_objects(&mut self) {
        self.say([format!("$O.{}.>", stream::BUCKET_OBJECTS)]);
    }

    fn ask(&mut self, questions: &[&str]) {
        self.say(questions.iter().copied());
    }

    fn answer(&mut self, questions: &[&str], askers: &[User]) {
        self.hear(questions.iter().copied());
        self.say(askers.iter().map(|asker| format!("{}.>", asker.inbox())));
    }
}

/// What plain NATS clients may do, in the account that imports it: submit, and read what becomes of it.
#[must_use]
pub fn client() -> Permissions {
    Permissions {
        publish: vec!["vl.v1.submit.*".to_owned()],
        subscribe: ["_INBOX.>", subject::REPLY_ALL, SEEN, TOKENS].map(str::to_owned).to_vec(),
    }
}

/// The accounts of the server, as its configuration has them.
///
/// Plain clients have an account of their own, because a server judges a mapped publish by where it lands: in the account of
/// the roles, a client that may submit could append facts to any execution's log. What they import is all they see.
#[must_use]
pub fn accounts() -> String {
    let mut text = String::new();
    text.push_str("accounts {\n  VLINDERS {\n    jetstream: enabled\n    mappings: {\n");
    let _ = writeln!(text, "      {}\n    }}", submit_mapping());
    text.push_str("    exports: [\n      {service: \"vl.v1.submit.*\", accounts: [CLIENTS]}\n");
    for stream in [SEEN, TOKENS, subject::REPLY_ALL] {
        let _ = writeln!(text, "      {{stream: \"{stream}\", accounts: [CLIENTS]}}");
    }
    text.push_str("    ]\n    users: [\n");
    for user in User::ALL {
        write_user(&mut text, &user.key(), user.name(), &user.permissions());
    }
    text.push_str("    ]\n  }\n  CLIENTS {\n    imports: [\n");
    text.push_str("      {service: {account: VLINDERS, subject: \"vl.v1.submit.*\"}}\n");
    for stream in [SEEN, TOKENS, subject::REPLY_ALL] {
        let _ = writeln!(text, "      {{stream: {{account: VLINDERS, subject: \"{stream}\"}}}}");
    }
    text.push_str("    ]\n    users: [\n");
    write_user(&mut text, "VL_CLIENT", "client", &client());
    text.push_str(
        "    ]\n  }\n  SYS {\n    users: [\n      {nkey: $VL_SYS} # sys: what `nats server` asks\n    ]\n  }\n}\n",
    );
    text.push_str("system_account: SYS\n");
    text
}

fn write_user(text: &mut String, key: &str, name: &str, may: &Permissions) {
    let _ = writeln!(text, "      {{ # {name}\n        nkey: ${key}\n        permissions: {{");
    for (what, subjects) in [("publish", &may.publish), ("subscribe", &may.subscribe)] {
        let _ = writeln!(text, "          {what}: {{allow: [");
        for subject in subjects {
            let _ = writeln!(text, "            \"{subject}\"");
        }
        text.push_str("          ]}\n");
    }
    text.push_str("        }\n      }\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_publish(user: User, subject: &str) -> bool {
        user.permissions().publish.iter().any(|allowed| covers(allowed, subject))
    }

    /// Whether a pattern of the server matches a subject.
    fn covers(pattern: &str, subject: &str) -> bool {
        let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
        loop {
            match (pattern.next(), subject.next()) {
                (Some(">"), Some(_)) | (None, None) => return true,
                (Some(p), Some(s)) if p == "*" || p == s => {}
                _ => return false,
            }
        }
    }

    #[test]
    fn decisions_come_from_orchestrators_alone() {
        let may = |user: &User| may_publish(*user, "vl.v1.log.3.0192f0c1.decision");
        assert_eq!(User::ALL.into_iter().filter(may).collect::<Vec<_>>(), [User::Orchestrator]);
    }

    #[test]
    fn nobody_deletes_purges_or_changes_a_stream() {
        for user in User::ALL {
            for verb in ["STREAM.DELETE", "STREAM.PURGE", "STREAM.UPDATE", "STREAM.RESTORE"] {
                assert!(!may_publish(user, &format!("$JS.API.{verb}.VL_LOG_0")), "{} {verb}", user.name());
            }
            assert!(!may_publish(user, "$JS.API.STREAM.MSG.DELETE.VL_LOG_0"), "{}", user.name());
        }
    }

    #[test]
    fn everybody_hears_their_own_answers_and_nobody_elses() {
        for user in User::ALL {
            let heard = user.permissions().subscribe;
            let others = heard.iter().filter(|subject| subject.starts_with("_INBOX"));
            assert_eq!(others.collect::<Vec<_>>(), [&format!("{}.>", user.inbox())]);
        }
    }

    #[test]
    fn an_auditor_writes_nothing() {
        let said = User::Auditor.permissions().publish;
        assert!(said.iter().all(|subject| subject.starts_with("$JS.")), "{said:?}");
    }
}
