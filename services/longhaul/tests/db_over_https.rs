//! `longhaul db` over https: with a server whose certificate is trusted, and with one whose certificate is not.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::process::Command;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate for localhost and 127.0.0.1 and its key, of these tests alone.
const CERTIFICATE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/https/certificate.pem");
const KEY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/https/key.pem");

/// Answers each request as an admin API without backups does, if the token is there.
async fn serve(listener: TcpListener) {
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(CERTIFICATE).unwrap()],
            PrivateKeyDer::from_pem_file(KEY).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        // A client that does not trust it hangs up.
        let Ok(mut stream) = acceptor.accept(socket).await else { continue };
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let body = match head.contains("authorization: bearer a-token-of-the-tests") {
            true => r#"{"backups":[]}"#,
            false => r#"{"error":{"message":"no token","code":"credentials_refused"}}"#,
        };
        let length = body.len();
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_trusted_is_asked_and_another_is_not() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(serve(listener));
    let list = |host: &'static str, trusted: Option<&'static str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_longhaul"));
        command.args(["--json", "db", "list", "--url", &format!("https://{host}:{port}")]);
        command.env("BACKUP_ADMIN_TOKEN", "a-token-of-the-tests").env_remove("SSL_CERT_DIR");
        match trusted {
            Some(file) => command.env("SSL_CERT_FILE", file),
            None => command.env_remove("SSL_CERT_FILE"),
        };
        tokio::task::spawn_blocking(move || command.output().unwrap())
    };
    for host in ["localhost", "127.0.0.1"] {
        let answered = list(host, Some(CERTIFICATE)).await.unwrap();
        assert!(answered.status.success() && answered.stdout.is_empty(), "{answered:?}");
    }
    let refused = list("localhost", None).await.unwrap();
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    server.abort();
}
