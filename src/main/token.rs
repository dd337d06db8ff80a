//! The command `token`: creates a token with the hub's own secret.

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use progress_hub_auth::jwt::Minter;

use crate::arguments::{ConfigArgs, duration};
use crate::print;

#[derive(Args)]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Token subject (job owner id)
    #[arg(long)]
    sub: String,
    /// Space-separated scopes: jobs:read jobs:write jobs:publish admin
    #[arg(long, default_value = "jobs:read")]
    scope: String,
    /// Narrow the token to this job; may be repeated
    #[arg(long = "job", value_name = "JOB")]
    jobs: Vec<String>,
    /// Mail address of the owner, for mails about jobs that the token submits
    #[arg(long)]
    email: Option<String>,
    /// Lifetime, such as 15m or 1h
    #[arg(long, default_value = "15m", value_parser = duration)]
    ttl: Duration,
}

pub(crate) fn run(args: TokenArgs) -> anyhow::Result<()> {
    let auth = args.config.load_auth()?;
    let minter = Minter::new(&auth).context("auth.hs256_secrets is required to create a token")?;
    let jobs = Some(args.jobs).filter(|jobs| !jobs.is_empty());
    let now = jiff::Timestamp::now();
    let minted = minter
        .mint_with_email(
            &args.sub,
            args.email.as_deref(),
            jobs,
            Some(&args.scope),
            args.ttl,
            now,
        )
        .context("failed to create the token")?;
    print(&minted.token)
}
