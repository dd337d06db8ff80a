//! Cost of verifying a webhook signature, by scheme and body size.
//!
//! All signatures are valid. Rejecting a forged signature does not take longer.

#![expect(clippy::unwrap_used, reason = "a failed setup aborts the benchmark")]

use criterion::{BenchmarkId, Criterion, Throughput};
use progress_hub::time::Time;
use progress_hub_auth::signature::{Key, Request, Scheme};
use secrecy::SecretString;

/// Name, definition and secret of each scheme, as in the definitions of `kling` and `generic`.
const SCHEMES: [(&str, &str, &str); 2] = [
    (
        "standard_webhooks",
        "scheme = 'standard_webhooks'",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    ),
    (
        "x-ai-signature",
        "scheme = 'hmac'\nheader = 'x-ai-signature'\nencoding = 'hex'\nprefix = 'sha256='",
        "a secret of at least thirty-two bytes",
    ),
];

fn main() {
    let now = Time::now().timestamp();
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("verify");
    for (name, definition, secret) in SCHEMES {
        let scheme: Scheme = toml::from_str(definition).unwrap();
        let keys = [Key::from(SecretString::from(secret))];
        for kib in [1, 64] {
            let body = vec![b'x'; kib << 10];
            let signed = scheme.sign(&keys[0], "msg_1", &body, now).unwrap();
            group.throughput(Throughput::Bytes(body.len() as u64));
            group.bench_function(BenchmarkId::new(name, format!("{kib} KiB")), |bencher| {
                let request = Request {
                    headers: &signed,
                    body: &body,
                    url: "",
                };
                bencher.iter(|| scheme.verify(&request, &keys, now).unwrap().trust());
            });
        }
    }
    group.finish();
    criterion.final_summary();
}
