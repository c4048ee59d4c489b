//! What a service tells at `/metrics`, and whoever asks it by HTTP.

use std::fmt;

use anyhow::Context;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Everything that a service counted and measured at one moment.
pub struct Metrics(pub(crate) String);

impl Metrics {
    /// The sum of what has this name and these words in its labels; `None` where there is none, as of a count that nothing
    /// was added to.
    pub fn find(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let of_it = self.0.lines().filter(|line| {
            let (found, rest) = line.split_at(line.find(['{', ' ']).unwrap_or(line.len()));
            found == name && labels.iter().all(|label| rest.contains(label))
        });
        let values: Vec<f64> = of_it.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// The same, with 0 where there is none.
    pub fn value(&self, name: &str, labels: &[&str]) -> f64 {
        self.find(name, labels).unwrap_or(0.0)
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The whole answer to a GET.
pub(crate) async fn get(address: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
