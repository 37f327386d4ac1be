//! What every Remuda process shares: configuration, telemetry, TLS, shutdown.
