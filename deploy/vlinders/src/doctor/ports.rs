//! Whether what is to be listened on is free, and who has it if not.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;

use super::Finding;
use crate::settings::Settings;

/// The state of a socket that listens, in `/proc/net/tcp`.
const LISTENS: &str = "0A";
/// The name of our own processes.
const OURS: &str = "vlinders";

/// An address that a setting names.
struct Wanted {
    what: &'static str,
    address: String,
    /// Its setting, and the flag that goes before it.
    named: &'static str,
    /// Nothing starts without it.
    needed: bool,
}

/// Tries every address that the settings name.
pub(super) fn look(settings: &Settings) -> Vec<Finding> {
    wanted(settings).iter().map(judge).collect()
}

fn wanted(settings: &Settings) -> Vec<Wanted> {
    let gateway = &settings.gateway;
    let mut wanted =
        vec![Wanted { what: "HTTP", address: gateway.http.clone(), named: "--http (gateway.http)", needed: true }];
    let named = "--grpc (gateway.grpc)";
    match gateway.grpc.as_deref() {
        Some("off") => {}
        Some(address) => wanted.push(Wanted { what: "gRPC", address: address.to_owned(), named, needed: true }),
        // The port behind HTTP's, without which HTTP is served alone.
        None => {
            wanted.extend(behind(&gateway.http).map(|address| Wanted { what: "gRPC", address, named, needed: false }))
        }
    }
    let metrics = settings.telemetry.metrics.clone();
    let metrics = metrics.map(|address| Wanted { what: "metrics", address, named: "telemetry.metrics", needed: true });
    wanted.extend(metrics);
    wanted
}

fn behind(http: &str) -> Option<String> {
    let (host, port) = http.rsplit_once(':')?;
    let port: u16 = port.parse().ok().filter(|port| *port != 0)?;
    Some(format!("{host}:{}", port.wrapping_add(1)))
}

fn judge(wanted: &Wanted) -> Finding {
    let Wanted { what, address, named, needed } = wanted;
    let bound = address.to_socket_addrs().and_then(|found| {
        let found: Vec<SocketAddr> = found.collect();
        TcpListener::bind(&found[..])
    });
    let error = match bound {
        Ok(_) if address.ends_with(":0") => return Finding::fine("ports", format!("{what} takes a free port")),
        Ok(_) => return Finding::fine("ports", format!("{what} at {address} is free")),
        Err(error) => error,
    };
    let holder = (error.kind() == ErrorKind::AddrInUse).then(|| holder(address, Path::new("/proc"))).flatten();
    if let Some(Holder { name, id }) = holder.as_ref().filter(|holder| holder.name == OURS) {
        return Finding::fine("ports", format!("{what} at {address} is served already, by {name} (process {id})"));
    }
    let found = match (&holder, error.kind()) {
        (Some(Holder { name, id }), _) => format!("{what} at {address} is taken by {name} (process {id})"),
        (None, ErrorKind::AddrInUse) => {
            format!("{what} at {address} is taken, by a process that is not shown to this user")
        }
        (None, _) => format!("{what} cannot listen at {address}: {error}"),
    };
    let next = match error.kind() {
        ErrorKind::AddrInUse => format!("stop it, or choose another address with {named}; port 0 takes a free one"),
        ErrorKind::PermissionDenied => {
            format!("choose a port from 1024 on with {named}, or let this user have that one")
        }
        _ => format!("choose an address of this machine with {named}"),
    };
    let finding = match needed {
        true => Finding::wrong("ports", "TAKEN", found),
        false => Finding::odd("ports", "taken", format!("{found}; HTTP is served without it")),
    };
    finding.next(next)
}

/// Who listens.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    name: String,
    id: u32,
}

/// The process that listens on the port of this address. None where it is another user's, which is not shown.
fn holder(address: &str, proc: &Path) -> Option<Holder> {
    let port: u16 = address.rsplit_once(':')?.1.parse().ok()?;
    let tables = ["net/tcp", "net/tcp6"].map(|table| std::fs::read_to_string(proc.join(table)).unwrap_or_default());
    let sockets: Vec<String> = tables.iter().flat_map(|table| listening(table, port)).collect();
    let processes = std::fs::read_dir(proc).ok()?.filter_map(io::Result::ok);
    processes.into_iter().find_map(|process| {
        let id: u32 = process.file_name().to_str()?.parse().ok()?;
        let open = std::fs::read_dir(process.path().join("fd")).ok()?.filter_map(io::Result::ok);
        let mut links = open.filter_map(|file| std::fs::read_link(file.path()).ok());
        links.find(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str()))?;
        let name = std::fs::read_to_string(process.path().join("comm")).ok()?;
        Some(Holder { name: name.trim().to_owned(), id })
    })
}

/// How the sockets that listen on a port are named among a process' open files.
fn listening(table: &str, port: u16) -> Vec<String> {
    let of_line = |line: &str| {
        let mut fields = line.split_whitespace();
        let (local, state) = (fields.nth(1)?, fields.nth(1)?);
        let at = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        let inode = fields.nth(5)?;
        (at == port && state == LISTENS).then(|| format!("socket:[{inode}]"))
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    fn at(address: &str, needed: bool) -> Finding {
        judge(&Wanted { what: "HTTP", address: address.to_owned(), named: "--http (gateway.http)", needed })
    }

    #[test]
    fn who_has_a_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let own = holder(&address, Path::new("/proc")).expect("our own process");
        assert_eq!(own.id, std::process::id());
        let finding = at(&address, true);
        assert_eq!(finding.state, State::Wrong("TAKEN"), "{}", finding.found);
        assert!(finding.found.contains(&format!("taken by {} (process {})", own.name, own.id)), "{}", finding.found);
        assert!(finding.next.is_some_and(|next| next.contains("--http")));
        assert_eq!(at(&address, false).state, State::Odd("taken"));
        drop(listener);
        assert_eq!(at(&address, true).state, State::Fine);
        assert_eq!(at("127.0.0.1:0", true).state, State::Fine);
    }

    #[test]
    fn an_address_of_another_machine_is_not_ours() {
        // Of the block for documentation, which no machine has.
        let finding = at("192.0.2.1:8080", true);
        assert_eq!(finding.state, State::Wrong("TAKEN"), "{}", finding.found);
        assert!(finding.found.contains("cannot listen"), "{}", finding.found);
        assert!(finding.next.is_some_and(|next| next.contains("this machine")));
    }

    #[test]
    fn sockets_are_found_by_port_and_state() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \u{20}  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n\
            \u{20}  1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n\
            \u{20}  2: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0\n";
        assert_eq!(listening(table, 8_080), ["socket:[4711]"]);
        assert_eq!(behind("0.0.0.0:8080").as_deref(), Some("0.0.0.0:8081"));
        assert_eq!(behind("[::]:0"), None);
    }
}
