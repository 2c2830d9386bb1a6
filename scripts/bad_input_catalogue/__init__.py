"""Bad inputs as data: a name, a command line, what is prepared, and what the answer must name."""

from bad_input_catalogue.algorithms import ALGORITHMS
from bad_input_catalogue.attacks import ATTACKS
from bad_input_catalogue.case import Case
from bad_input_catalogue.chains import CHAINS
from bad_input_catalogue.configs import CONFIGS
from bad_input_catalogue.data import DATA
from bad_input_catalogue.feedback import FEEDBACK
from bad_input_catalogue.imports import IMPORTS
from bad_input_catalogue.judging import JUDGING
from bad_input_catalogue.models import MODELS
from bad_input_catalogue.odd_files import ODD_FILES
from bad_input_catalogue.odd_values import ODD_VALUES
from bad_input_catalogue.own_code import OWN_CODE
from bad_input_catalogue.rewards import REWARDS
from bad_input_catalogue.runs import RUNS

CASES: list[Case] = [
    *CONFIGS,
    *DATA,
    *MODELS,
    *REWARDS,
    *ALGORITHMS,
    *RUNS,
    *CHAINS,
    *ODD_VALUES,
    *ODD_FILES,
    *OWN_CODE,
    *ATTACKS,
    *FEEDBACK,
    *JUDGING,
    *IMPORTS,
]
