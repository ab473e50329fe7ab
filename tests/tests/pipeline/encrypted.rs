//! A gateway that speaks TLS only, as the command line meets it.

use anyhow::ensure;
use pipeline_tests::System;

#[tokio::test]
async fn commands_ask_a_gateway_over_tls_if_they_trust_it() -> anyhow::Result<()> {
    let mut system = System::start_without(&["gateway"]).await?;
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
    let (certificate, key) = (system.directory().join("tls.crt"), system.directory().join("tls.key"));
    std::fs::write(&certificate, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    let tls = format!("{{certificate_file = {certificate:?}, key_file = {key:?}}}");
    system.start_role_with("gateway", &[], &[("VLINDERS_GATEWAY__TLS", &tls)]).await?;
    let certificate = certificate.display().to_string();

    let asked = system.plain_client(&["chat", "hello", "--max-tokens", "4", "--ca-file", &certificate]).await?;
    ensure!(asked.code == Some(0) && !asked.stdout.trim().is_empty(), "{asked:?}");
    let well = system.plain_client(&["health", "--ca-file", &certificate]).await?;
    ensure!(well.code == Some(0) && well.stdout.contains("\"ready\":true"), "{well:?}");
    let stranger = system.plain_client(&["tools", "ls"]).await?;
    ensure!(stranger.code == Some(1) && stranger.stderr.contains("ertificate"), "{stranger:?}");
    let nothing = system.plain_client(&["tools", "ls", "--ca-file", "/nowhere/ca.pem"]).await?;
    ensure!(nothing.code == Some(2) && nothing.stderr.contains("/nowhere/ca.pem"), "{nothing:?}");
    Ok(())
}
