//! Who this process is to the NATS server, and how it knows the server: exactly one kind of credentials, or none.

use std::path::Path;

use async_nats::ConnectOptions;

use super::Config;

/// Adds credentials and trust to the options of a connection.
///
/// # Errors
/// A text that names the setting and what is wrong with it.
pub(super) async fn present(config: &Config, options: ConnectOptions) -> Result<ConnectOptions, String> {
    check(config)?;
    let mut options = options.require_tls(config.tls);
    if let Some(prefix) = &config.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    if let Some(file) = &config.ca_file {
        options = options.add_root_certificates(readable("ca_file", file)?.to_owned());
    }
    if let (Some(certificate), Some(key)) = (&config.certificate_file, &config.key_file) {
        let certificate = readable("certificate_file", certificate)?.to_owned();
        options = options.add_client_certificate(certificate, readable("key_file", key)?.to_owned());
    }
    if let Some(user) = &config.user {
        let password = match &config.password_file {
            Some(file) => text("password_file", file)?,
            None => config.password.as_ref().map(|p| p.expose().to_owned()).unwrap_or_default(),
        };
        return Ok(options.user_and_password(user.clone(), password));
    }
    if let Some(file) = &config.nkey_file {
        return Ok(options.nkey(text("nkey_file", file)?));
    }
    match &config.credentials_file {
        Some(file) => options.credentials_file(file).await.map_err(|e| failed("credentials_file", file, &e)),
        None => Ok(options),
    }
}

/// What can be known before a file is opened.
fn check(config: &Config) -> Result<(), String> {
    let given = [
        ("user", config.user.is_some()),
        ("nkey_file", config.nkey_file.is_some()),
        ("credentials_file", config.credentials_file.is_some()),
    ];
    let given: Vec<&str> = given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name).collect();
    if given.len() > 1 {
        return Err(format!("{} are given; a process has one kind of credentials", given.join(" and ")));
    }
    let (password, password_file) = (config.password.is_some(), config.password_file.is_some());
    match (config.user.is_some(), password, password_file) {
        (false, false, false) | (true, true, false) | (true, false, true) => {}
        (true, false, false) => return Err("user is given without password or password_file".to_owned()),
        (false, ..) => return Err("a password is given without user".to_owned()),
        (true, true, true) => return Err("password and password_file are both given; leave one out".to_owned()),
    }
    if config.certificate_file.is_some() != config.key_file.is_some() {
        return Err("certificate_file and key_file belong together; one of them is missing".to_owned());
    }
    match &config.inbox_prefix {
        Some(prefix) if prefix.is_empty() || prefix.contains(['*', '>', ' ']) || prefix.ends_with('.') => {
            Err(format!("inbox_prefix is {prefix:?}, which is no beginning of a subject"))
        }
        _ => Ok(()),
    }
}

/// The client itself would only say that no server answers.
fn readable<'a>(setting: &str, file: &'a Path) -> Result<&'a Path, String> {
    std::fs::File::open(file).map(|_| file).map_err(|e| failed(setting, file, &e))
}

fn text(setting: &str, file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|e| failed(setting, file, &e))?;
    match text.trim() {
        "" => Err(format!("{setting} {} is empty", file.display())),
        text => Ok(text.to_owned()),
    }
}

fn failed(setting: &str, file: &Path, error: &std::io::Error) -> String {
    format!("read {setting} {}: {error}", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    fn refused(config: &Config) -> String {
        check(config).expect_err("these settings contradict each other")
    }

    #[test]
    fn one_kind_of_credentials_or_none() {
        let secret = || Some(Secret::new("s".to_owned()));
        let file = || Some("/run/secrets/seed".into());
        check(&Config::default()).expect("none");
        check(&Config { nkey_file: file(), ..Config::default() }).expect("a seed");
        check(&Config { user: Some("a".into()), password_file: file(), ..Config::default() }).expect("a password");
        let both = Config { user: Some("a".into()), password: secret(), nkey_file: file(), ..Config::default() };
        assert!(refused(&both).contains("user and nkey_file"), "{}", refused(&both));
        let alone = Config { password: secret(), ..Config::default() };
        assert!(refused(&alone).contains("without user"), "{}", refused(&alone));
        let half = Config { certificate_file: file(), ..Config::default() };
        assert!(refused(&half).contains("key_file"), "{}", refused(&half));
        let pattern = Config { inbox_prefix: Some("_INBOX.>".into()), ..Config::default() };
        assert!(refused(&pattern).contains("inbox_prefix"), "{}", refused(&pattern));
    }

    #[tokio::test]
    async fn a_file_that_is_not_there_is_named_with_its_setting() {
        let config = Config { nkey_file: Some("/nowhere/seed".into()), ..Config::default() };
        let error = present(&config, ConnectOptions::new()).await.expect_err("no such file");
        assert!(error.contains("nkey_file /nowhere/seed"), "{error}");
    }
}
