//! `cargo run --release -p allod-cloud --features testing --example bench_tokens`: how long a token takes to validate
//! with 1,000 users, each with roles on 3 projects, while another thread changes roles.

use std::time::{Duration, Instant};

use cloud::identity::upkeep;

const VALIDATIONS: usize = 200_000;

#[tokio::main]
async fn main() {
    let test = cloud::testing::cloud().await;
    let mut tokens = Vec::new();
    for user in 0..1000 {
        for project in 0..3 {
            let token = test
                .token(
                    &format!("user{user}"),
                    &format!("project{}", user + project),
                    "member",
                )
                .await;
            tokens.push(token);
        }
    }
    let quiet = measure(&test, &tokens);
    let writer = {
        let cloud = test.cloud.clone();
        tokio::spawn(async move {
            loop {
                if upkeep::rotate(&cloud).await.is_err() {
                    return;
                }
            }
        })
    };
    let busy = tokio::task::block_in_place(|| measure(&test, &tokens));
    writer.abort();
    for (name, mut times) in [("quiet", quiet), ("under_writes", busy)] {
        times.sort();
        let micros = |part: f64| {
            let at = ((times.len() - 1) as f64 * part) as usize;
            times[at].as_secs_f64() * 1e6
        };
        println!("bench token_validate_{name}_p50 {:.1} us", micros(0.5));
        println!("bench token_validate_{name}_p99 {:.1} us", micros(0.99));
        println!("bench token_validate_{name}_max {:.1} us", micros(1.0));
    }
}

fn measure(test: &cloud::testing::TestCloud, tokens: &[String]) -> Vec<Duration> {
    (0..VALIDATIONS)
        .map(|i| {
            let start = Instant::now();
            let context = test.cloud.identity.validate(&tokens[i % tokens.len()]);
            let took = start.elapsed();
            assert!(context.is_ok());
            took
        })
        .collect()
}
