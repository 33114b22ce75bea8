from tue_cli.protect.protector import Protector as Protector

__version__: str
