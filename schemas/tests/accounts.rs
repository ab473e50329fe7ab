//! The accounts in the server's configuration are those of the code. Run with `UPDATE_GOLDEN=1` to write them anew, and
//! read the diff.

use std::path::PathBuf;

use schemas::permission;

const HEAD: &str = "\
# Accounts and users of Vlinders-Server's NATS: one user for each role, with the least that it needs, and an account of
# their own for plain clients. Written from schemas/src/permission.rs by
#
#     UPDATE_GOLDEN=1 cargo test -p schemas --test accounts
#
# The variables are the public halves of the users' keys: deploy/nats/make-keys writes them to keys.conf.
include keys.conf

";

#[test]
fn the_servers_accounts_are_those_of_the_code() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats/accounts.conf");
    let text = format!("{HEAD}{}", permission::accounts());
    #[expect(clippy::disallowed_methods, reason = "a switch for the person who changes the permissions on purpose")]
    if std::env::var("UPDATE_GOLDEN").is_ok() {
        std::fs::write(&path, &text).expect("write the accounts");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    assert_eq!(text, written, "deploy/nats/accounts.conf is not what schemas/src/permission.rs says");
}
