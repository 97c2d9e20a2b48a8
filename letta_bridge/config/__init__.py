"""The configuration: one YAML file, overridable by environment, validated with messages that name the key."""

from .document import example, reference, render
from .errors import ConfigError, Problem
from .load import ENV_PREFIX, load, parse
from .schema import (
    IGNORED_SENDERS,
    AgentFilter,
    AppserviceConfig,
    Config,
    ConversationConfig,
    DatabaseConfig,
    HomeserverConfig,
    LettaConfig,
    LimitsConfig,
    LoggingConfig,
    MetricsConfig,
    MirrorConfig,
    ShutdownConfig,
)

__all__ = [
    "ENV_PREFIX",
    "IGNORED_SENDERS",
    "AgentFilter",
    "AppserviceConfig",
    "Config",
    "ConfigError",
    "ConversationConfig",
    "DatabaseConfig",
    "HomeserverConfig",
    "LettaConfig",
    "LimitsConfig",
    "LoggingConfig",
    "MetricsConfig",
    "MirrorConfig",
    "Problem",
    "ShutdownConfig",
    "example",
    "load",
    "parse",
    "reference",
    "render",
]
