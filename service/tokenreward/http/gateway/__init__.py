"""The gateway: one request to all the deployments that it names, and one reply.

backend       reads a request, and answers it
scorer_routes where each scorer is served, and which others a request needs
questions     what scorers are asked on behalf of others
subrequests   the part of a request for each deployment, and the merged reply
fanout        all sub-requests of one request
upstream      one call to a deployment; upstream_answers reads its failure
"""
