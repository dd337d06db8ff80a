//! The command `check`: validates a configuration.

use clap::Args;
use progress_hub::destinations::Destinations;
use progress_hub::destinations::archive::Archive;

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
        let archive = Archive::open(&config.archive).map_err(UsageError::from)?;
        let mut errors = destinations.check().await.err().unwrap_or_default();
        if let Some(archive) = archive {
            errors.extend(archive.check().await.err());
        }
        if !errors.is_empty() {
            return Err(UsageError::from(errors).into());
        }
    }
    print(&config.to_redacted_toml())
}
