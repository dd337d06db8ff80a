//! The command `check`: validates a configuration.

use clap::Args;
use progress_hub::destinations::Destinations;

use crate::arguments::ConfigArgs;
use crate::error::UsageError;
use crate::print;

#[derive(Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Also check the destinations from this machine: log in to the mail server, resolve the hosts
    /// of webhooks, access the archive; nothing is delivered
    #[arg(long)]
    online: bool,
}

pub(crate) async fn run(args: CheckArgs) -> anyhow::Result<()> {
    let (config, warnings) = args.config.load_with_warnings()?;
    for warning in warnings {
        eprintln!("warning: {warning}");
    }
    if args.online {
        let destinations = Destinations::load(&config).map_err(UsageError::from)?;
        destinations.check().await.map_err(UsageError::from)?;
    }
    print(&config.to_redacted_toml())
}
