"""Taking a result elsewhere: other tools' formats, the Hub, and a run's model with what it has learnt."""
